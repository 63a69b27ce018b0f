"""Reads models and adapters that mixdistill wrote in the way that vLLM does before it serves them.

    python tests/parity/check_serving.py DIR [VLLM]

DIR is what `check_ours.py` reads: folders with models and with adapters. VLLM is the folder `vllm` of
vLLM's package, whose own code reads the adapters and knows the names of models. Without it, the script
checks only the folders. It does not build or start vLLM. docs/serving.md lists what is checked.

The exit status is 1 if a folder failed or there was none.
"""

import ast
import json
import logging
import os
import sys
import types
from dataclasses import dataclass
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import transformers
from peft import PeftModel
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

# Ranks that vLLM's `--max-lora-rank` accepts.
MAX_RANKS = [1, 8, 16, 32, 64, 128, 256, 320, 512]
# Linear layers of the supported families, by their names in adapters. vLLM takes the layers of each model
# from the model's modules and its `packed_modules_mapping`.
LAYERS = {
    *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    *("qkv_proj", "gate_up_proj"),
    # Linear attention (vLLM's `qwen3_5.py`).
    *("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a", "out_proj"),
}
# Relative to the largest change. The factors are multiplied in a different order.
TOLERANCE = 1e-6


class Vllm:
    """The parts of vLLM that read adapters, with placeholders for imports that are not used here."""

    def __init__(self, folder):
        self.folder = folder
        self.architectures = set(self.registry())
        logger = logging.getLogger("vllm")
        logger.info_once = logger.warning_once = lambda *_: None
        self.module("vllm", __path__=[])
        for package in ("lora", "config", "model_executor", "model_executor.models", "utils"):
            self.module(f"vllm.{package}", __path__=[])
        self.module("vllm.logger", init_logger=lambda _: logger)
        self.module("vllm.config.lora", LoRAConfig=Limits)
        self.module("vllm.model_executor.models.utils", WeightsMapper=object)
        self.module("vllm.utils.torch_utils", PIN_MEMORY=False)
        if "regex" not in sys.modules:
            import re

            sys.modules["regex"] = re
        self.helper = self.source("lora/peft_helper.py", "vllm.lora.peft_helper")
        names = ["parse_fine_tuned_lora_name", "is_base_embedding_weights", "get_lora_id"]
        self.module("vllm.lora.utils", **self.functions("lora/utils.py", names))
        self.source("lora/lora_weights.py", "vllm.lora.lora_weights")
        self.model = self.source("lora/lora_model.py", "vllm.lora.lora_model")

    def module(self, name, **contents):
        module = types.ModuleType(name)
        module.__dict__.update(contents)
        sys.modules[name] = module
        return module

    def source(self, path, name):
        module = self.module(name)
        text = (self.folder / path).read_text(encoding="utf-8")
        exec(compile(text, str(self.folder / path), "exec"), module.__dict__)
        return module

    def functions(self, path, names):
        """Functions from a file whose other parts import all of vLLM."""
        tree = ast.parse((self.folder / path).read_text(encoding="utf-8"))
        is_wanted = lambda node: isinstance(node, ast.FunctionDef) and node.name in names
        tree.body = [node for node in tree.body if is_wanted(node) or is_number(node)]
        contents = {}
        exec(compile(tree, path, "exec"), contents)
        return {name: contents[name] for name in names}

    def registry(self):
        """The model classes that vLLM serves: the keys of the tables in its registry."""
        path = self.folder / "model_executor/models/registry.py"
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
                for key in node.value.keys:
                    if isinstance(key, ast.Constant):
                        yield key.value

    def adapter(self, folder):
        """Loads the adapter as the server does."""
        helper = self.helper.PEFTHelper.from_local_dir(str(folder), None)
        ranks = [rank for rank in MAX_RANKS if rank >= helper.r]
        helper.validate_legal(Limits(max_lora_rank=ranks[0]))
        return self.model.LoRAModel.from_local_checkpoint(
            str(folder), LAYERS, helper, lora_model_id=1, device="cpu", dtype=torch.float32
        )


def is_number(node):
    """Returns whether a statement assigns a constant to a module variable."""
    return isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)


@dataclass
class Limits:
    """vLLM's limits for adapters."""

    max_lora_rank: int


def read_json(path):
    return json.loads(path.read_text(encoding="utf-8"))


def require(problems, what, holds):
    if not holds:
        problems.append(what)


def check_weights(folder, problems):
    """vLLM's loader reads all safetensors files that an index names, or else all files in the folder."""
    there = {path.name for path in folder.glob("*.safetensors")} - {"ours.safetensors"}
    index = folder / "model.safetensors.index.json"
    held = {}
    for name in there:
        with safe_open(folder / name, framework="pt") as file:
            for key in file.keys():
                require(problems, f"{key} is in two files", key not in held)
                held[key] = name
    if index.exists():
        named = read_json(index)["weight_map"]
        require(problems, "the index names other files", set(named.values()) == there)
        require(problems, "the index names other tensors", named == held)
    else:
        require(problems, f"files {there}", there == {"model.safetensors"})


def check_template(folder, problems):
    """The chat template must be in both places where programs look for it."""
    file, settings = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    of_file = file.read_text(encoding="utf-8") if file.exists() else None
    of_settings = read_json(settings).get("chat_template") if settings.exists() else None
    require(problems, "the chat template is not in both places", of_file == of_settings)
    return of_file


def check_generation(folder, config, template, problems):
    """Checks the end tokens and the padding token."""
    generation = GenerationConfig.from_pretrained(folder)
    ends = generation.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    require(problems, "generation_config.json has no end token", None not in ends)
    for key in ("bos_token_id", "pad_token_id"):
        there = [getattr(generation, key), getattr(config, key, None)]
        require(problems, f"{key} is lost", there[0] == there[1] or there[1] is None)
    if not (folder / "tokenizer.json").exists():
        return
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if template is not None:
        messages = [
            {"role": "user", "content": "1 + 1?"},
            {"role": "assistant", "content": "It is 2"},
        ]
        ids = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
        specials = [id for id in ids if id in tokenizer.all_special_ids]
        require(problems, "the template's end of turn is not an end token", specials[-1] in ends)


def check_model(folder, vllm, problems):
    config = AutoConfig.from_pretrained(folder)
    text = read_json(folder / "config.json")
    require(problems, "dtype and torch_dtype differ", text["dtype"] == text["torch_dtype"])
    require(problems, f"dtype is {config.dtype}", config.dtype in (torch.float32, torch.bfloat16))
    name = text.get("_name_or_path") or ""
    require(problems, f"_name_or_path is a path: {name}", not name.startswith((".", "/")))
    [architecture] = config.architectures
    if vllm:
        known = architecture in vllm.architectures
        require(problems, f"vLLM has no {architecture}", known)
    check_weights(folder, problems)
    # The tests' tiny models have no tokenizer.
    if (folder / "tokenizer.json").exists() or (folder / "generation_config.json").exists():
        check_generation(folder, config, check_template(folder, problems), problems)


def what_is_refused(folder, config):
    """What docs/serving.md lists as refused by vLLM; such adapters must be merged first."""
    keys = ("use_dora", "lora_bias", "modules_to_save", "layer_replication")
    refused = [key for key in keys if config.get(key)]
    if config.get("bias") != "none":
        refused.append("bias")
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
        ends = (".lora_A.weight", ".lora_B.weight", ".lora_embedding_A", ".lora_embedding_B")
        known = lambda name: name.endswith((*ends, ".base_layer.weight"))
        refused += [name for name in file.keys() if not known(name)][:1]
    return refused


def check_adapter(folder, vllm, problems):
    config = read_json(folder / "adapter_config.json")
    base = config["base_model_name_or_path"]
    # In folders with a base.txt, the base has a made-up name (see `check_ours.py`).
    if not (folder / "base.txt").exists():
        is_id = base.count("/") == 1 and not base.startswith((".", "/", "~"))
        is_there = os.path.isabs(base) and os.path.isdir(base)
        require(problems, f"the base's name {base} is neither a model ID nor a folder", is_id or is_there)
    if not vllm:
        return
    refused = what_is_refused(folder, config)
    try:
        loaded = vllm.adapter(folder)
    except ValueError as error:
        if not refused:
            raise
        print(f"{folder.name}: vLLM refuses {', '.join(refused)}, as docs/serving.md says: {error}")
        return
    require(problems, f"vLLM accepts {refused}", not refused)
    if not (folder / "base.txt").exists():
        return
    base = folder.parent / (folder / "base.txt").read_text(encoding="utf-8").strip()
    if "text_config" in read_json(base / "config.json"):
        return
    # Compare the change of the layers' weights with PEFT.
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, folder)
    theirs = {
        name.removeprefix("base_model.model."): module.get_delta_weight("default")
        for name, module in model.named_modules()
        if hasattr(module, "get_delta_weight") and "default" in getattr(module, "lora_A", {})
    }
    require(problems, "layers differ from PEFT's", theirs.keys() == loaded.loras.keys())
    for name in theirs.keys() & loaded.loras.keys():
        layer, expected = loaded.loras[name], theirs[name]
        ours = layer.lora_b @ layer.lora_a * layer.scaling
        difference = (ours - expected).abs().max().item()
        close = difference <= TOLERANCE * expected.abs().max().item()
        require(problems, f"{name} differs by {difference:.1e}", close)


def main():
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    root = Path(sys.argv[1])
    vllm = Vllm(Path(sys.argv[2])) if len(sys.argv) == 3 else None
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_grad_enabled(False)
    folders = sorted(path.parent for path in root.glob("*/*config.json"))
    folders = list(dict.fromkeys(folders))
    failed = False
    for folder in folders:
        problems = []
        is_adapter = (folder / "adapter_config.json").exists()
        try:
            (check_adapter if is_adapter else check_model)(folder, vllm, problems)
        except Exception as error:
            problems.append(f"{type(error).__name__}: {error}")
        failed |= bool(problems)
        print(folder.name, "FAILED: " + "; ".join(problems) if problems else "ok", flush=True)
    if not folders:
        sys.exit(f"no folders in {root}")
    sys.exit(failed)


if __name__ == "__main__":
    main()
