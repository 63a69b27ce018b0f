"""Makes adapters of every PEFT kind that mixdistill reads, and records what PEFT computes with them.

    python tests/parity/make_adapters.py OUT_DIR

Each case gets a folder under OUT_DIR as PEFT's `save_pretrained` writes it, and a `base.txt` with the base
model's folder under `tests/parity`. `reference.safetensors` has, in f32 and with eager attention:

  input_ids, logits, token_losses, loss   one row, which starts with a prompt
  grad.NAME                               gradient of that loss, by the parameter's name without the
                                          adapter's name
  merged_logits                           logits after merge_and_unload

Everything is seeded; see `make_references.py`.
"""

import json
import shutil
import sys
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import torch
from make_families import load
from make_references import ALL_LINEAR, be_deterministic, loss_tensors, save_adapter, versions
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file

HERE = Path(__file__).parent
LENGTH = 28
COMMAND = "python tests/parity/make_adapters.py tests/parity/adapters"


@dataclass
class Case:
    """An adapter's base, its settings, and how it is saved."""

    base: str
    settings: dict
    save: dict = field(default_factory=dict)


CASES = {
    # Separate ranks and scales, by parts of names, by regular expressions, and by full paths.
    "patterns": Case(
        "families/smollm3",
        dict(
            target_modules=ALL_LINEAR,
            layers_to_transform=[0, 2, 3],
            layers_pattern="layers",
            exclude_modules=["2.mlp.up_proj", "o_proj"],
            rank_pattern={
                "^model.layers.0.self_attn.q_proj": 5,
                "self_attn.q_proj": 2,
                r".*\.3\.mlp\.(gate|up)_proj": 4,
                "layers.0": 7,
            },
            alpha_pattern={"down_proj": 1, r"layers\.[02]\..*k_proj": 12.5},
        ),
    ),
    "regex_bias": Case(
        "families/qwen2_window",
        dict(
            target_modules=r"model\.layers\.\d+\.(?!mlp)self_attn\.[qkv]_proj", lora_bias=True
        ),
    ),
    # DoRA does not scale the biases of the layers.
    "dora_rslora": Case(
        "families/qwen2_window",
        dict(target_modules=ALL_LINEAR, use_dora=True, use_rslora=True),
    ),
    "dora_all_linear": Case(
        "families/phi3",
        dict(target_modules="all-linear", use_dora=True, rank_pattern={"qkv_proj": 5}),
    ),
    "saved": Case(
        "families/olmo2",
        dict(
            target_modules=["q_proj", "v_proj", "down_proj"],
            modules_to_save=["lm_head", "embed_tokens", "model.norm", "1.mlp.gate_proj"],
        ),
    ),
    # Embedding and head stay tied ...
    "saved_tied": Case(
        "families/smollm3",
        dict(target_modules=["q_proj"], modules_to_save=["embed_tokens"], ensure_weight_tying=True),
    ),
    # ... or become two matrices, of which one or both are trained.
    "saved_head": Case(
        "families/qwen2_window", dict(target_modules=["v_proj"], modules_to_save=["lm_head"])
    ),
    "saved_embedding": Case(
        "families/granite", dict(target_modules=["v_proj"], modules_to_save=["embed_tokens"])
    ),
    "saved_both": Case(
        "families/gemma3_text",
        dict(target_modules=["v_proj"], modules_to_save=["embed_tokens", "lm_head"]),
    ),
    "stored_embeddings": Case(
        "families/olmo2",
        dict(target_modules=["k_proj"]),
        dict(save_embedding_layers=True),
    ),
    "full_paths": Case(
        "families/mistral",
        dict(
            target_modules=[
                "model.layers.0.self_attn.q_proj",
                "model.layers.2.mlp.down_proj",
                "1.mlp.gate_proj",
            ]
        ),
    ),
    # A model of text and images.
    "part": Case(
        "families/mistral3",
        dict(
            target_modules=r".*language_model.*\.(q_proj|down_proj)",
            rank_pattern={r"model\.language_model\.layers\.1\..*": 5},
            modules_to_save=["language_model.norm"],
            use_dora=True,
        ),
    ),
}


def adapter(model, seed, settings):
    """Returns a PEFT model in which no new parameter has its initial value."""
    torch.manual_seed(seed)
    config = LoraConfig(
        r=3, lora_alpha=6, lora_dropout=0.0, task_type="CAUSAL_LM", **settings
    )
    model = get_peft_model(model, config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
        elif "modules_to_save" in name:
            parameter.data += 0.1 * torch.randn_like(parameter)
        elif "lora_magnitude_vector" in name:
            parameter.data *= 1 + 0.2 * torch.randn_like(parameter)
    return model


def gradients(model):
    tensors = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            name = name.replace(".modules_to_save.default.", ".").replace(".default.", ".")
            tensors["grad." + name] = parameter.grad.clone()
    return tensors


def make_case(folder, case, seed):
    base = HERE / case.base
    shutil.rmtree(folder, ignore_errors=True)
    model = adapter(load(base), seed, dict(case.settings))
    if "save_embedding_layers" in case.save:
        with torch.no_grad():
            for layer in [model.get_input_embeddings(), model.get_output_embeddings()]:
                layer.weight += 0.1 * torch.randn_like(layer.weight)
    save_adapter(model, folder, base, **case.save)
    (folder / "base.txt").write_text(case.base + "\n")
    ids = torch.randint(3, 104, (1, LENGTH))
    model = PeftModel.from_pretrained(load(base), folder, is_trainable=True).eval()
    tensors = loss_tensors(model, ids) | gradients(model)
    with torch.no_grad():
        tensors["merged_logits"] = model.merge_and_unload()(ids).logits.contiguous()
    save_file(tensors, folder / "reference.safetensors")


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    out = Path(sys.argv[1])
    be_deterministic()
    # PEFT warns about tied matrices that become two, and about patterns that match no layer.
    warnings.simplefilter("ignore")
    for seed, (name, case) in enumerate(CASES.items(), start=40):
        make_case(out / name, case, seed)
    (out / "versions.json").write_text(json.dumps(versions(COMMAND), indent=2) + "\n")


if __name__ == "__main__":
    main()
