"""Makes tiny random models, and records what transformers and PEFT compute with them.

    python tests/parity/make_references.py OUT_DIR

Each model gets a folder under OUT_DIR as `save_pretrained` writes it, with logits, greedy tokens,
losses, and gradient norms in `reference.safetensors`. `qwen2` also gets two LoRA adapters. If a
model's config.json is rewritten in the form of transformers 4, the original stays as
`config_transformers5.json`. Everything is seeded: the same versions (see `versions.json`) on the same
type of CPU produce the same files; other CPUs may differ in the last bits.
"""

import json
import os
import shutil
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import peft
import torch
import torch.nn.functional as F
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

VOCAB = 96
LENGTH = 48  # input tokens
UNTRAINED = 10  # prompt tokens at the start of the input, which are not trained
GREEDY_PROMPT = 8
GREEDY_NEW = 24
# Least gap between the two best logits at every greedy step, larger than any rounding error.
LEAST_MARGIN = 0.05
ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
COMMAND = "python tests/parity/make_references.py tests/parity/fixtures"

TINY = dict(
    vocab_size=VOCAB,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    initializer_range=0.3,
    bos_token_id=1,
    eos_token_id=2,
)


def llama3():
    """Llama 3.2: tied head, scaled RoPE, a config in the form of transformers 4."""
    # With a head width of 16, the wavelengths are 6.3, 32.4, 167, and longer. The bounds 10 (40 / 4)
    # and 40 (40 / 1) keep the first frequency, blend the second, and divide the others by 8.
    config = LlamaConfig(
        **TINY,
        head_dim=16,
        max_position_embeddings=320,
        tie_word_embeddings=True,
        rms_norm_eps=1e-5,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 40,
        },
    )
    return LlamaForCausalLM(config), {"old_config": {}}


def llama_bf16():
    """An untied head, bf16 weights in several files."""
    config = LlamaConfig(**TINY, max_position_embeddings=128)
    return LlamaForCausalLM(config).to(torch.bfloat16), {"max_shard_size": "30KB"}


def qwen2():
    """Qwen2.5: biases on q, k, and v, f16 weights, a config in the form of transformers 4."""
    config = Qwen2Config(
        **TINY,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
    )
    # The window is off, as in the published models, but set and shorter than the input: a program that
    # applies it anyway gets different logits.
    window = {"use_sliding_window": False, "sliding_window": 16, "max_window_layers": 1}
    return Qwen2ForCausalLM(config).to(torch.float16), {"old_config": window}


def qwen3():
    """Norms on q and k, heads wider than hidden / heads, tied head."""
    config = Qwen3Config(
        **TINY,
        head_dim=16,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
    )
    return Qwen3ForCausalLM(config), {}


# With these seeds, no greedy margin is below LEAST_MARGIN.
MODELS = [(llama3, 3), (llama_bf16, 22), (qwen2, 23), (qwen3, 3)]


def fill(model):
    """Sets norm weights and biases, which start at one and zero, to random values."""
    for name, parameter in model.named_parameters():
        if "norm" in name:
            torch.nn.init.normal_(parameter, mean=1.0, std=0.2)
        elif name.endswith(".bias"):
            torch.nn.init.normal_(parameter, std=0.5)


def rewrite_config(folder, extra):
    """Rewrites config.json in the form of transformers 4 and keeps the original under another name."""
    path = folder / "config.json"
    path.rename(folder / "config_transformers5.json")
    new = json.loads((folder / "config_transformers5.json").read_text())
    rope = new.pop("rope_parameters")
    old = {key: value for key, value in new.items() if value is not None}
    old["rope_theta"] = rope.pop("rope_theta")
    old["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    old["torch_dtype"] = old.pop("dtype")
    old["transformers_version"] = "4.46.0"
    old.pop("layer_types", None)
    old |= extra
    path.write_text(json.dumps(old, indent=2, sort_keys=True) + "\n")


def load(folder):
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    return model.eval()


def loss_tensors(model, ids, untrained=UNTRAINED):
    """Returns logits, next-token losses, and their mean. The parameters hold the gradient of the mean."""
    labels = ids.clone()
    labels[:, :untrained] = -100
    out = model(input_ids=ids, labels=labels)
    out.loss.backward()
    tensors = {
        "input_ids": ids,
        "logits": out.logits,
        # Loss i belongs to token i + 1; losses of untrained tokens are 0.
        "token_losses": F.cross_entropy(out.logits[0, :-1], labels[0, 1:], reduction="none"),
        "loss": out.loss.reshape(1),
    }
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}


def loss_reference(model, ids):
    """Returns `loss_tensors` and the gradient norm of each parameter."""
    tensors = loss_tensors(model, ids)
    squares = torch.zeros(1, dtype=torch.float64)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            norm = parameter.grad.double().norm().reshape(1)
            squares += norm**2
            # PEFT's files do not contain the adapter's name, "default".
            tensors["grad_norm." + name.replace(".default.", ".")] = norm.float()
    tensors["grad_norm_total"] = squares.sqrt().float()
    return tensors


def greedy_reference(model, ids, prompt=GREEDY_PROMPT, new=GREEDY_NEW):
    """Returns the greedy continuation of the first `prompt` input tokens, at full length (no end token)."""
    model.generation_config.eos_token_id = None
    out = model.generate(
        ids[:, :prompt],
        attention_mask=torch.ones_like(ids[:, :prompt]),
        do_sample=False,
        max_new_tokens=new,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    best = torch.cat(out.logits).topk(2).values
    margins = best[:, 0] - best[:, 1]
    if margins.min() < LEAST_MARGIN:
        sys.exit(f"a greedy margin of {margins.min():.4f} is too small: change the seed")
    return {"greedy": out.sequences[0, prompt:].clone(), "greedy_margins": margins}


def make_model(folder, make, seed):
    torch.manual_seed(seed)
    model, options = make()
    fill(model)
    old_config = options.pop("old_config", None)
    model.save_pretrained(folder, **options)
    if old_config is not None:
        rewrite_config(folder, old_config)

    ids = torch.randint(3, VOCAB, (1, LENGTH))
    model = load(folder)
    tensors = loss_reference(model, ids) | greedy_reference(model, ids)
    save_file(tensors, folder / "reference.safetensors")


def save_adapter(model, folder, base, **settings):
    """Writes a PEFT model's adapter, identically on every machine."""
    # The default is the local path of the base model.
    model.peft_config["default"].base_model_name_or_path = None
    model.base_model.model.name_or_path = ""
    model.save_pretrained(folder, **settings)
    (folder / "README.md").unlink()
    path = folder / "adapter_config.json"
    written = json.loads(path.read_text())
    written["base_model_name_or_path"] = "tiny-" + base.name
    if not isinstance(written["target_modules"], str):
        written["target_modules"] = sorted(written["target_modules"])  # a set, in arbitrary order
    path.write_text(json.dumps(written, indent=2) + "\n")


def random_adapter(model, seed, **settings):
    """Returns a PEFT model with a LoRA adapter whose B is not zero."""
    torch.manual_seed(seed)
    config = LoraConfig(lora_dropout=0.0, task_type="CAUSAL_LM", **settings)
    model = get_peft_model(model, config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def make_adapter(base, folder, seed, **settings):
    save_adapter(random_adapter(load(base), seed, r=4, lora_alpha=8, **settings), folder, base)

    ids = torch.randint(3, VOCAB, (1, LENGTH))
    model = PeftModel.from_pretrained(load(base), folder, is_trainable=True).eval()
    save_file(loss_reference(model, ids), folder / "reference.safetensors")


def versions(command):
    return {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
        "command": command,
    }


def be_deterministic():
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    out = Path(sys.argv[1])
    be_deterministic()
    for make, seed in MODELS:
        folder = out / make.__name__
        shutil.rmtree(folder, ignore_errors=True)
        make_model(folder, make, seed)
    make_adapter(out / "qwen2", out / "qwen2" / "adapter", 5, target_modules=ALL_LINEAR)
    make_adapter(
        out / "qwen2",
        out / "qwen2" / "adapter_rslora",
        6,
        target_modules=["q_proj", "v_proj"],
        use_rslora=True,
    )
    (out / "versions.json").write_text(json.dumps(versions(COMMAND), indent=2) + "\n")


if __name__ == "__main__":
    main()
