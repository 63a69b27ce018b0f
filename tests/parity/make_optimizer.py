#!/usr/bin/env python3
"""Records 20 steps of bitsandbytes' AdamW8bit on the CPU.

usage: make_optimizer.py FIXTURES
Writes FIXTURES/adamw_8bit.safetensors: both dynamic maps, and after steps 1, 2, 10, and 20 the parameters and moments
of `large`, which has 8-bit moments, and of `small`, which has fewer than 4,096 elements. Parameters and gradients are
made from integers, so the test can reproduce them: see `numbers` and `gradient`. Needs torch, bitsandbytes, and
safetensors.
"""
import sys
from pathlib import Path

import bitsandbytes
import torch
from bitsandbytes.functional import create_dynamic_map
from safetensors.torch import save_file

SIZES = {"large": (2, 4133), "small": (11, 100)}
STEPS, KEPT, RATE, DECAY = 20, (1, 2, 10, 20), 1e-2, 0.1


def numbers(seed, count):
    """Numbers in -1..1 that any language can reproduce: 24 bits of a linear congruential generator."""
    state, found = seed, []
    for _ in range(count):
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        found.append((state >> 40) / 2**23 - 1)
    return torch.tensor(found, dtype=torch.float32)


def gradient(name, step):
    """Magnitudes over several powers of ten, like real gradients; in the first steps, the first block is zero."""
    count = SIZES[name][0] * SIZES[name][1]
    uniform = numbers(1000 * step + len(name), count)
    found = uniform**3 * 1e-2
    if step < 5:
        found[:256] = 0
    return found.reshape(SIZES[name])


def flat(tensor):
    return tensor.detach().clone().flatten()


parameters = {
    name: torch.nn.Parameter(numbers(len(name), shape[0] * shape[1]).reshape(shape)) for name, shape in SIZES.items()
}
optimizer = bitsandbytes.optim.AdamW8bit(parameters.values(), lr=RATE, weight_decay=DECAY)
record = {"signed_map": create_dynamic_map(signed=True), "unsigned_map": create_dynamic_map(signed=False)}
for step in range(1, STEPS + 1):
    for name, parameter in parameters.items():
        parameter.grad = gradient(name, step)
    optimizer.step()
    if step not in KEPT:
        continue
    for name, parameter in parameters.items():
        state = optimizer.state[parameter]
        record[f"{step}.{name}"] = flat(parameter)
        record[f"{step}.{name}.exp_avg"] = flat(state["state1"])
        record[f"{step}.{name}.exp_avg_sq"] = flat(state["state2"])
        if name == "large":
            record[f"{step}.{name}.exp_avg.absmax"] = flat(state["absmax1"])
            record[f"{step}.{name}.exp_avg_sq.absmax"] = flat(state["absmax2"])
path = Path(sys.argv[1]) / "adamw_8bit.safetensors"
versions = {"torch": torch.__version__, "bitsandbytes": bitsandbytes.__version__}
save_file(record, path, metadata=versions)
print(f"{path.stat().st_size} bytes, {versions}")
