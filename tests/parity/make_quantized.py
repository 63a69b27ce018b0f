"""Records how bitsandbytes quantizes some matrices, for tests/ops/stored.rs and src/ops/encoding.rs.

    python make_quantized.py fixtures/quantized.safetensors

Needs torch 2.15.0, bitsandbytes 0.50.0, and safetensors. Runs on the CPU.
"""

import sys

import bitsandbytes.functional as F
import torch
from safetensors.torch import save_file

torch.manual_seed(18)


def matrices():
    yield "plain", torch.randn(96, 64) * 0.02
    # Rows whose length is not a multiple of the block size, and a shorter last block.
    yield "ragged", torch.randn(33, 67)
    # Outliers, a row of zeros, a block of zeros, and a block with one nonzero value.
    odd = torch.randn(40, 128) ** 3
    odd[3] = 0
    odd[7, :64] = 0
    odd[9, 64:] = 0
    odd[9, 70] = -0.3
    yield "odd", odd


tensors = {}
for name, weight in matrices():
    tensors[f"{name}.weight"] = weight
    codes, state = F.quantize_4bit(weight, blocksize=64, quant_type="nf4")
    tensors[f"{name}.nf4.codes"] = codes.flatten()
    tensors[f"{name}.nf4.scales"] = state.absmax
    tensors[f"{name}.nf4.decoded"] = F.dequantize_4bit(codes, state)
    codes, state = F.quantize_4bit(weight, blocksize=64, quant_type="nf4", compress_statistics=True)
    tensors[f"{name}.double.scale_codes"] = state.absmax
    tensors[f"{name}.double.scales"] = torch.cat([state.state2.absmax, state.offset.reshape(1)])
    tensors[f"{name}.double.decoded"] = F.dequantize_4bit(codes, state)
    codes, scales, _ = F.int8_vectorwise_quant(weight)
    tensors[f"{name}.int8.codes"] = codes
    tensors[f"{name}.int8.scales"] = scales
    tensors[f"{name}.int8.decoded"] = F.int8_vectorwise_dequant(codes, scales)
# Scales in more than one block of 256.
weight = torch.randn(300, 64) * torch.linspace(0.5, 2, 300)[:, None]
tensors["many.weight"] = weight
codes, state = F.quantize_4bit(weight, blocksize=64, quant_type="nf4", compress_statistics=True)
tensors["many.double.scale_codes"] = state.absmax
tensors["many.double.scales"] = torch.cat([state.state2.absmax, state.offset.reshape(1)])
tensors["many.double.decoded"] = F.dequantize_4bit(codes, state)
tensors["map"] = F.create_dynamic_map(True)
tensors["unsigned_map"] = F.create_dynamic_map(False)
save_file({key: value.contiguous() for key, value in tensors.items()}, sys.argv[1])
