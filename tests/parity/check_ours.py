"""Loads what mixdistill wrote into transformers and PEFT, and compares logits.

    python tests/parity/check_ours.py DIR

Every folder in DIR is a case, in one of two forms. Its `ours.safetensors` has `input_ids` and the
`logits` that mixdistill computed.

  model    config.json and weights; optionally tokenizer.json, generation_config.json, and ours.json.
           ours.json: {"class": ..., "config_of": ..., "text": ..., "ids": [...],
           "chat": {"messages": [...], "rendered": ...}, "answers": [{"messages": [...],
           "variables": {...}, "prompt": [...], "tokens": [...]}]}, all optional.
           class      the class that the model must load as
           config_of  the folder that the model was made from; the configurations (their text parts)
                      must be equal
           ids        the tokens of `text`, without added special tokens
           chat       messages, and how the template renders them with a generation prompt
           answers    messages, template variables, the resulting prompt tokens, and the greedy tokens
                      that follow
  adapter  adapter_config.json, adapter_model.safetensors, and base.txt, which has the base model's
           folder relative to DIR. The adapter must produce the same logits, also after merging.

A folder that a base.txt names does not need ours.safetensors. A warning while loading fails the case.
The exit status is 1 if a case failed or there was none.
"""

import json
import logging
import os
import re
import sys
import warnings
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import transformers
from peft import PeftModel, get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

# Relative to the largest logit. A different order of sums changes logits by about 1e-6.
TOLERANCE = 1e-5
# For models whose results in transformers itself, by chunks and by single tokens, differ by about 1e-4.
TOLERANCES = {"qwen3_5_text": 1e-4, "qwen3_5": 1e-4}
# Keys in which a configuration may differ from the one that it was made from.
FREE_KEYS = {
    "_name_or_path",
    "architectures",
    "dtype",
    "transformers_version",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
}
NOT_OURS = [
    # PEFT 0.21 itself uses this old name of transformers 5.24, with any files.
    "`is_gradient_checkpointing` is deprecated",
    # PEFT warns about a head that is trained separately from the embedding, which these settings intend.
    "Model has `tie_word_embeddings=True` and a tied layer is part of the adapter",
    "Input and output embeddings are no longer tied after merging.",
    # `adapters/patterns` has a pattern that matches nothing; mixdistill writes it as it was read.
    "The following rank_pattern keys did not match any targeted module and were ignored: ['layers.0']",
    # Every Phi with LongRoPE: the published folders have no `factor` either.
    "This model config has set a `rope_parameters['original_max_position_embeddings']` field",
]


@dataclass
class Case:
    folder: Path
    form: str
    tolerance: float = TOLERANCE
    difference: float | None = None
    problems: list[str] = field(default_factory=list)

    def require(self, what, got, expected):
        if got != expected:
            self.problems.append(f"{what}: got {got!r}, expected {expected!r}")

    def compare(self, what, logits, ours):
        if logits.shape != ours.shape:
            self.require(f"shape of {what}", list(ours.shape), list(logits.shape))
            return
        difference = (logits - ours).abs().max().item()
        self.difference = max(difference, self.difference or 0.0)
        allowed = self.tolerance * logits.abs().max().item()
        if not difference <= allowed:  # also fails for NaN
            self.problems.append(f"{what} differ by {difference:.2e}, more than {allowed:.0e}")

    @contextmanager
    def no_warnings(self, doing):
        """Every warning, and every log record of level WARNING or above, in the block is a problem."""
        messages = []
        handler = logging.Handler(logging.WARNING)
        handler.emit = lambda record: messages.append(record.getMessage())
        # transformers does not propagate its records to the root logger.
        loggers = [logging.getLogger(), logging.getLogger("transformers")]
        for logger in loggers:
            logger.addHandler(handler)
        # A warning that is shown only once must show for every case.
        transformers.utils.logging.warning_once.cache_clear()
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                yield
        finally:
            for logger in loggers:
                logger.removeHandler(handler)
            messages += [f"{w.category.__name__}: {w.message}" for w in caught]
            for message in dict.fromkeys(messages):
                if not any(text in message for text in NOT_OURS):
                    self.problems.append(f"warning on {doing}: {message}")


def base_of(folder):
    return folder.parent / (folder / "base.txt").read_text(encoding="utf-8").strip()


def load_model(case, folder):
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    case.tolerance = TOLERANCES.get(config["model_type"], TOLERANCE)
    # AutoModelForCausalLM does not know models of text and images.
    auto = AutoModelForCausalLM
    if "text_config" in config:
        auto = getattr(transformers, config["architectures"][0])
    with case.no_warnings("loading the model"):
        model, info = auto.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
        )
    for key, names in info.items():
        if names:
            case.problems.append(f"{key}: {sorted(names)}")
    return model.eval()


def what_we_said(case):
    path = case.folder / "ours.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def check_model(case, ids, ours):
    model = load_model(case, case.folder)
    case.compare("logits", model(ids).logits, ours)
    said = what_we_said(case)
    check_config(case, model, said)
    if (case.folder / "generation_config.json").exists():
        with case.no_warnings("loading generation_config.json"):
            GenerationConfig.from_pretrained(case.folder)
    if (case.folder / "tokenizer.json").exists():
        tokenizer = check_tokenizer(case, said)
        check_answers(case, model, tokenizer, said.get("answers", []))


def check_config(case, model, said):
    name = type(model).__name__
    case.require("architectures", model.config.architectures, [name])
    case.require("class", name, said.get("class", name))
    if "config_of" not in said:
        return
    theirs = AutoConfig.from_pretrained(said["config_of"]).get_text_config().to_dict()
    ours = model.config.to_dict()
    for key in sorted((theirs.keys() | ours.keys()) - FREE_KEYS):
        case.require(f"config's {key}", ours.get(key), theirs.get(key))


def check_tokenizer(case, said):
    with case.no_warnings("using the tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(case.folder)
        if "text" in said:
            ids = tokenizer(said["text"], add_special_tokens=False)["input_ids"]
            case.require("ids", said["ids"], ids)
        if chat := said.get("chat"):
            rendered = tokenizer.apply_chat_template(
                chat["messages"], tokenize=False, add_generation_prompt=True
            )
            case.require("rendered chat", chat["rendered"], rendered)
    return tokenizer


def check_answers(case, model, tokenizer, answers):
    for answer in answers:
        prompt = tokenizer.apply_chat_template(
            answer["messages"], add_generation_prompt=True, return_dict=False, **answer["variables"]
        )
        case.require("prompt", answer["prompt"], prompt)
        ids = torch.tensor([prompt])
        new = len(answer["tokens"])
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=new
        )
        case.require("answer", answer["tokens"], out[0, len(prompt) :].tolist())


def check_adapter(case, ids, ours):
    model = load_model(case, base_of(case.folder))
    with case.no_warnings("loading the adapter"):
        model = PeftModel.from_pretrained(model, case.folder).eval()
    # PEFT ignores unknown tensors without a warning.
    with safe_open(case.folder / "adapter_model.safetensors", framework="pt") as file:
        # An embedding that no setting names was saved along with the adapter.
        saved = model.peft_config["default"].modules_to_save
        stored = not saved and any("embed_tokens" in name for name in file.keys())
        with warnings.catch_warnings():
            # PEFT 0.21 mistakes the bias of B for a damaged matrix.
            warnings.filterwarnings("ignore", message="Adapter 'default': .*lora_B.bias")
            used = get_peft_model_state_dict(model, save_embedding_layers=stored)
        case.require("tensors only in the file", sorted(file.keys() - used.keys()), [])
        case.require("tensors only in PEFT", sorted(used.keys() - file.keys()), [])
    case.compare("logits", model(ids).logits, ours)
    with case.no_warnings("merging the adapter"):
        merged = model.merge_and_unload()
    case.compare("logits after merging", merged(ids).logits, ours)


def check(folder):
    is_adapter = (folder / "adapter_config.json").exists()
    case = Case(folder, "adapter" if is_adapter else "model")
    try:
        ours = load_file(folder / "ours.safetensors")
        check_form = check_adapter if is_adapter else check_model
        check_form(case, ours["input_ids"], ours["logits"])
    except Exception as error:
        case.problems.append(f"{type(error).__name__}: {error}")
    return case


def line(case):
    difference = "not measured" if case.difference is None else f"{case.difference:.2e}"
    verdict = "FAILED: " + "; ".join(case.problems) if case.problems else "ok"
    # Messages may contain line breaks and escape codes for bold text.
    plain = re.sub(r"\x1b\[\d*m", "", f"{case.folder.name} {case.form} {difference} {verdict}")
    return " ".join(plain.split())


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    root = Path(sys.argv[1])
    transformers.utils.logging.set_verbosity_warning()
    transformers.utils.logging.disable_progress_bar()
    torch.set_grad_enabled(False)
    bases = {base_of(path.parent).resolve() for path in root.glob("*/base.txt")}
    cases = []
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        if folder.resolve() in bases and not (folder / "ours.safetensors").exists():
            continue
        cases.append(check(folder))
        print(line(cases[-1]), flush=True)
    if not cases:
        sys.exit(f"no cases in {root}")
    sys.exit(any(case.problems for case in cases))


if __name__ == "__main__":
    main()
