"""Records what PyPI's `gguf`, ggml's reference in Python, makes of numbers and of blocks.

    python tests/parity/make_gguf.py tests/parity/fixtures/gguf_blocks.safetensors

  values          numbers of several sizes, with blocks of zeros, ties, and midpoints between codes
  TYPE.written    their bytes as q8_0, q4_0, f16, and bf16
  TYPE.bytes      random blocks of each type that mixdistill reads
  TYPE.read       the values of these blocks in f32
"""

import sys

import gguf
import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType as Type
from safetensors.numpy import save_file

WRITTEN = [Type.Q8_0, Type.Q4_0, Type.F16, Type.BF16]
READ = [
    Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1, Type.Q8_0, Type.Q2_K, Type.Q3_K, Type.Q4_K,
    Type.Q5_K, Type.Q6_K, Type.IQ4_NL, Type.IQ4_XS, Type.MXFP4,
]
# Offsets of the f16 scales in a block; with random bits, some would be infinite.
SCALES = {
    "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q2_K": [80, 82],
    "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208], "IQ4_NL": [0], "IQ4_XS": [0],
    "MXFP4": [],
}
BLOCKS = 6


def values():
    random = np.random.default_rng(7)
    rows = [random.normal(0, scale, 64) for scale in (1e-6, 0.02, 1.0, 300.0)]
    halves = np.arange(-32, 32) / 2.0
    rows += [np.zeros(64), halves, np.where(np.arange(64) % 2, 3.0, -3.0)]
    rows += [np.where(np.arange(64) == 40, -5.0, 0.0), random.integers(-8, 9, 64) * 0.125]
    return np.stack(rows).astype(np.float32)


def blocks(kind):
    random = np.random.default_rng(kind.value)
    size, length = GGML_QUANT_SIZES[kind]
    data = random.integers(0, 256, (BLOCKS, length), dtype=np.uint8)
    for at in SCALES[kind.name]:
        scales = random.normal(0, 0.05, BLOCKS).astype(np.float16)
        data[:, at : at + 2] = scales.view(np.uint8).reshape(BLOCKS, 2)
    if kind == Type.MXFP4:
        # Exponents, including the two smallest.
        data[:, 0] = [0, 1, 2, 120, 127, 131]
    return data


def main():
    numbers = values()
    tensors = {"values": numbers}
    for kind in WRITTEN:
        written = gguf.quantize(numbers, kind)
        tensors[f"{kind.name.lower()}.written"] = np.ascontiguousarray(written).view(np.uint8).reshape(-1)
    for kind in READ:
        data = blocks(kind)
        tensors[f"{kind.name.lower()}.bytes"] = data.reshape(-1)
        tensors[f"{kind.name.lower()}.read"] = gguf.dequantize(data, kind).astype(np.float32).reshape(-1)
    save_file(tensors, sys.argv[1])


main()
