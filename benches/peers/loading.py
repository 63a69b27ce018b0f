"""Loads models for the other scripts in this folder."""
import torch
from transformers import AutoModelForCausalLM


def loaded(path, base_type):
    """Returns the model with its linear layers in `base_type`; int8 and nf4 use bitsandbytes."""
    if base_type in ("int8", "nf4"):
        from transformers import BitsAndBytesConfig
        config = BitsAndBytesConfig(load_in_8bit=True) if base_type == "int8" else BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
        return AutoModelForCausalLM.from_pretrained(
            path, dtype=torch.float32, quantization_config=config, device_map="cpu")
    dtype = torch.bfloat16 if base_type == "bf16" else torch.float32
    return AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
