"""Measures the rounding errors of transformers' own Qwen3.5, as a reference for tolerances.

    python tests/parity/qwen3_5_rounding.py

For the tiny model `families/qwen3_5_text` in f32, it prints the largest difference between the logits of a whole row
(in chunks of 64) and of the same row token by token. For this and three other families, it prints the difference
between the gradients in f32 and under bf16 autocast, relative to the norm of the former.
"""

import json
import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import transformers
from safetensors.torch import load_file

FAMILIES = Path(__file__).parent / "families"
UNTRAINED = 10


def load(name):
    folder = FAMILIES / name
    config = json.loads((folder / "config.json").read_text())
    model_class = getattr(transformers, config["architectures"][0])
    model = model_class.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    return model.eval(), load_file(folder / "reference.safetensors")["input_ids"]


def token_by_token(model, ids):
    logits, cache = [], None
    with torch.no_grad():
        for token in ids.split(1, dim=1):
            out = model(token, cache=cache, use_cache=True)
            cache = out.cache
            logits.append(out.logits)
    return torch.cat(logits, 1)


def gradient(model, ids, autocast):
    labels = ids.clone()
    labels[:, :UNTRAINED] = -100
    model.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        loss = model(input_ids=ids, labels=labels).loss
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def main():
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    model, ids = load("qwen3_5_text")
    with torch.no_grad():
        whole = model(ids).logits
    difference = (token_by_token(model, ids) - whole).abs().max().item()
    print(f"qwen3_5_text: logits of a row and of single tokens differ by {difference:.1e}")
    for name in ("smollm3", "olmo2", "gemma3_text", "qwen3_5_text"):
        model, ids = load(name)
        exact = gradient(model, ids, False)
        off = (gradient(model, ids, True) - exact).norm() / exact.norm()
        print(f"{name}: the gradient in bf16 differs by {off.item():.1e}")


if __name__ == "__main__":
    main()
