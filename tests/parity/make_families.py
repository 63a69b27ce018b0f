"""Makes tiny random models of each family, and records what transformers and PEFT compute with them.

    python tests/parity/make_families.py OUT_DIR

Each case gets a folder under OUT_DIR as `save_pretrained` writes it. Its `reference.safetensors`
has, in f32 and with eager attention:

  input_ids, logits, token_losses, loss   one row, which starts with a prompt
  grad.NAME                               gradient of that loss, by the tensor's name in the file
  greedy, greedy_margins                  continuation of the first tokens, with a cache
  packed_loss                             mean over the trained tokens of two rows, cut from the
                                          same tokens, that do not attend to each other

A family's plain case also has a LoRA adapter on all linear layers in `adapter`, with its own
reference. If the published models have a config.json in the form of transformers 4, the folder also
has `config_transformers4.json`, with the same content in that form. Everything is seeded; see
`make_references.py`.
"""

import copy
import json
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from check_ours import Case as Messages
from make_references import (
    ALL_LINEAR,
    LENGTH,
    be_deterministic,
    greedy_reference,
    loss_tensors,
    random_adapter,
    save_adapter,
    versions,
)
from peft import PeftModel
from safetensors.torch import load_file, save_file

VOCAB = 107
GREEDY_PROMPT = 24
GREEDY_NEW = 20
LEAST_DISTINCT = 6  # different new tokens
# The packed rows are the first tokens and the rest. Each starts with a prompt.
PACKED_FIRST = 20
PACKED_UNTRAINED = 6
QWEN3_5_LINEAR = ["in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a", "out_proj"]
PHI3_LINEAR = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]
COMMAND = "python tests/parity/make_families.py tests/parity/families"

TINY = dict(
    vocab_size=VOCAB,
    num_hidden_layers=2,
    max_position_embeddings=128,
    initializer_range=0.25,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
)


def plain_rope(theta=10000.0):
    return {"rope_type": "default", "rope_theta": theta}


def yarn_rope(**settings):
    """With six to eight frequencies, some are kept, some blended, and some divided by the factor."""
    return {
        "rope_type": "yarn",
        "rope_theta": 1000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 256,
        **settings,
    }


@dataclass
class Case:
    """A model and its special properties."""

    model: transformers.PreTrainedModel
    # Layers with LoRA; None: no adapter.
    adapter: list[str] | str | None = None
    # Norms scale by 1 plus their weight.
    norms_around_zero: bool = False
    # Keys of the config.json in the form of transformers 4; a None value omits the key.
    config4: dict | None = None
    # Input tokens.
    length: int = LENGTH
    # Tensors in the file that do not belong to the model.
    others: dict | None = None


def mistral():
    """A window in every layer."""
    config = transformers.MistralConfig(
        **TINY | {"num_hidden_layers": 3},
        hidden_size=22,
        intermediate_size=26,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=6,
        sliding_window=7,
        rope_parameters=plain_rope(),
    )
    return Case(transformers.MistralForCausalLM(config), ALL_LINEAR, config4={})


def smollm3_config(**settings):
    return transformers.SmolLM3Config(
        **TINY | {"num_hidden_layers": 4},
        hidden_size=20,
        intermediate_size=24,
        num_attention_heads=2,
        num_key_value_heads=1,
        no_rope_layer_interval=2,
        **settings,
    )


def smollm3():
    """No RoPE in every second layer, the class's default theta, tied head."""
    model = transformers.SmolLM3ForCausalLM(smollm3_config())
    # The layers follow from the interval.
    config4 = {"no_rope_layers": None, "rope_theta": None}
    return Case(model, ALL_LINEAR, config4=config4)


def smollm3_sliding():
    """Windows in layers with and without RoPE."""
    config = smollm3_config(
        use_sliding_window=True,
        sliding_window=9,
        layer_types=[
            "sliding_attention",
            "full_attention",
            "full_attention",
            "sliding_attention",
        ],
        rope_parameters=plain_rope(5000.0),
    )
    return Case(transformers.SmolLM3ForCausalLM(config))


def granite():
    """Multipliers for embeddings, scores, branches, and logits; dropout, which only training uses."""
    config = transformers.GraniteConfig(
        **TINY,
        hidden_size=24,
        intermediate_size=28,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        attention_dropout=0.1,
        embedding_multiplier=1.5,
        attention_multiplier=0.3,
        residual_multiplier=0.8,
        logits_scaling=1.25,
        rope_parameters=plain_rope(),
    )
    return Case(transformers.GraniteForCausalLM(config), ALL_LINEAR, config4={})


def olmo2():
    """Norms after each branch and over all heads of q and k, untied head."""
    config = transformers.Olmo2Config(
        **TINY,
        hidden_size=24,
        intermediate_size=28,
        num_attention_heads=4,
        num_key_value_heads=2,
        rope_parameters=plain_rope(500000.0),
    )
    return Case(transformers.Olmo2ForCausalLM(config), ALL_LINEAR, config4={})


def phi3_config(**settings):
    sizes = dict(
        hidden_size=24,
        intermediate_size=28,
        num_attention_heads=3,
        num_key_value_heads=1,
    )
    return transformers.Phi3Config(**TINY | sizes | settings)


def phi3():
    """Fused layers, RoPE on the first 6 of 8 dimensions."""
    rope = plain_rope() | {"partial_rotary_factor": 0.75}
    model = transformers.Phi3ForCausalLM(phi3_config(rope_parameters=rope))
    config4 = {"partial_rotary_factor": 0.75}
    return Case(model, PHI3_LINEAR, config4=config4)


def phi3_window():
    config = phi3_config(num_attention_heads=6, num_key_value_heads=2, sliding_window=11)
    return Case(transformers.Phi3ForCausalLM(config))


def phi3_longrope_short():
    """Like Phi-4-mini: RoPE on a part of each head, tied head; all rows are short."""
    config = phi3_config(
        tie_word_embeddings=True,
        max_position_embeddings=512,
        original_max_position_embeddings=64,
        partial_rotary_factor=0.75,
        rope_scaling={
            "type": "longrope",
            "short_factor": [1.0, 1.3, 1.9],
            "long_factor": [1.1, 4.0, 9.0],
        },
    )
    return Case(transformers.Phi3ForCausalLM(config), config4={"partial_rotary_factor": 0.75})


def phi3_longrope_long():
    """Like Phi-3.5-mini: RoPE on whole heads; all rows are long."""
    config = phi3_config(
        max_position_embeddings=96,
        original_max_position_embeddings=16,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "short_factor": [1.0, 1.2, 1.6, 2.0],
            "long_factor": [1.2, 2.5, 6.0, 11.0],
        },
    )
    return Case(transformers.Phi3ForCausalLM(config))


def gemma3_text_config(**settings):
    sizes = dict(
        num_hidden_layers=7,
        hidden_size=18,
        intermediate_size=20,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=6,
        query_pre_attn_scalar=10,
        sliding_window=8,
    )
    return transformers.Gemma3TextConfig(**TINY | sizes | settings)


def gemma3_text():
    """Windows of 8 in five of six layers, with a separate theta."""
    model = transformers.Gemma3ForCausalLM(gemma3_text_config())
    config4 = {"sliding_window_pattern": 6, "tie_word_embeddings": None}
    return Case(model, ALL_LINEAR, norms_around_zero=True, config4=config4)


def gemma3():
    """Gemma 3 with a vision tower; every second layer has full attention, with positions divided by 8."""
    full = {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0}
    text = gemma3_text_config(
        num_hidden_layers=3,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        rope_parameters={"full_attention": full, "sliding_attention": plain_rope()},
    )
    vision = transformers.SiglipVisionConfig(
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=8,
        patch_size=2,
    )
    config = transformers.Gemma3Config(
        text_config=text,
        vision_config=vision,
        mm_tokens_per_image=4,
        boi_token_index=104,
        eoi_token_index=105,
        image_token_index=106,
        initializer_range=TINY["initializer_range"],
    )
    model = transformers.Gemma3ForConditionalGeneration(config)
    return Case(model, norms_around_zero=True)


def ministral3_config(**settings):
    """YaRN; query scales change every 16 positions, so twice within 48 tokens."""
    rope = {
        "type": "yarn",
        "rope_type": "yarn",
        "rope_theta": 30.0,
        "factor": 8.0,
        "original_max_position_embeddings": 16,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "max_position_embeddings": 128,
        "llama_4_scaling_beta": 0.4,
    }
    return transformers.Ministral3Config(
        **TINY,
        hidden_size=22,
        intermediate_size=26,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=12,
        rope_parameters=rope,
        **settings,
    )


def ministral3():
    model = transformers.Ministral3ForCausalLM(ministral3_config())
    return Case(model, ALL_LINEAR)


def mistral3():
    """Ministral 3 with a vision tower, tied head."""
    vision = transformers.PixtralVisionConfig(
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=8,
        patch_size=2,
    )
    config = transformers.Mistral3Config(
        text_config=ministral3_config(tie_word_embeddings=True),
        vision_config=vision,
        image_token_index=106,
        tie_word_embeddings=True,
    )
    # Only layers of the text part.
    return Case(
        transformers.Mistral3ForConditionalGeneration(config),
        adapter=r".*language_model.*\.(q_proj|v_proj|o_proj|gate_proj|down_proj)",
    )


def qwen3_5_config(**settings):
    """RoPE on 4 of 16 dimensions; three position grids, which are equal for text."""
    sizes = dict(
        num_hidden_layers=4,
        max_position_embeddings=256,
        hidden_size=20,
        intermediate_size=24,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        linear_key_head_dim=6,
        linear_value_head_dim=5,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        rope_parameters=plain_rope()
        | {"partial_rotary_factor": 0.25, "mrope_section": [1, 1, 0], "mrope_interleaved": True},
    )
    return transformers.Qwen3_5TextConfig(**TINY | sizes | settings)


def qwen3_5_text():
    """Three linear attention layers per full one; rows of more than one chunk."""
    model = transformers.Qwen3_5ForCausalLM(qwen3_5_config())
    return Case(
        model, ALL_LINEAR + QWEN3_5_LINEAR, norms_around_zero=True, config4={}, length=150
    )


def qwen3_5():
    """Qwen3.5 with a vision tower and multi-token prediction; explicit layer types, tied head."""
    text = qwen3_5_config(
        num_hidden_layers=3,
        layer_types=["full_attention", "linear_attention", "linear_attention"],
        tie_word_embeddings=True,
    )
    vision = dict(
        depth=1,
        hidden_size=8,
        intermediate_size=8,
        num_heads=2,
        patch_size=2,
        out_hidden_size=20,
        num_position_embeddings=16,
    )
    config = transformers.Qwen3_5Config(
        text_config=text.to_dict(),
        vision_config=vision,
        image_token_id=106,
        video_token_id=105,
        vision_start_token_id=104,
        vision_end_token_id=103,
        tie_word_embeddings=True,
    )
    return Case(
        transformers.Qwen3_5ForConditionalGeneration(config),
        adapter=r".*language_model.*\.(q_proj|o_proj|in_proj_qkv|in_proj_a|out_proj|down_proj)",
        norms_around_zero=True,
        length=100,
        others={"mtp.fc.weight": torch.zeros(20, 40), "mtp.norm.weight": torch.zeros(20)},
    )


def qwen2_yarn():
    """YaRN with only its factor and original length."""
    config = transformers.Qwen2Config(
        **TINY | {"max_position_embeddings": 1024},
        hidden_size=24,
        intermediate_size=28,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
        rope_parameters=yarn_rope(),
    )
    return Case(transformers.Qwen2ForCausalLM(config), config4={})


def qwen2_window():
    """A window of 10 in all layers from max_window_layers on; none in the first layer."""
    config = transformers.Qwen2Config(
        **TINY,
        hidden_size=24,
        intermediate_size=28,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
        use_sliding_window=True,
        sliding_window=10,
        max_window_layers=1,
    )
    return Case(transformers.Qwen2ForCausalLM(config), config4={})


def qwen3_config(rope):
    return transformers.Qwen3Config(
        **TINY | {"max_position_embeddings": 1024},
        hidden_size=22,
        intermediate_size=26,
        num_attention_heads=3,
        num_key_value_heads=1,
        head_dim=16,
        tie_word_embeddings=True,
        rope_parameters=rope,
    )


def qwen3_yarn_mscale():
    """The ends of the ramp are not integers; the factor of cos and sin comes from two mscales."""
    rope = yarn_rope(truncate=False, mscale=1.6, mscale_all_dim=0.7)
    return Case(transformers.Qwen3ForCausalLM(qwen3_config(rope)))


def qwen3_yarn_attention_factor():
    rope = yarn_rope(attention_factor=1.25, beta_fast=8.0, beta_slow=2.0, truncate=True)
    return Case(transformers.Qwen3ForCausalLM(qwen3_config(rope)), config4={})


def llama_config(rope, max_position_embeddings):
    return transformers.LlamaConfig(
        **TINY | {"max_position_embeddings": max_position_embeddings},
        hidden_size=24,
        intermediate_size=26,
        num_attention_heads=3,
        num_key_value_heads=1,
        head_dim=12,
        tie_word_embeddings=True,
        rope_parameters=rope,
    )


def llama_linear():
    """Positions divided by 4."""
    rope = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
    return Case(transformers.LlamaForCausalLM(llama_config(rope, 512)), config4={})


def llama_yarn():
    """YaRN with only one mscale, which transformers ignores."""
    rope = yarn_rope(factor=8.0, beta_fast=6.0, mscale=1.5)
    return Case(transformers.LlamaForCausalLM(llama_config(rope, 2048)))


# With these seeds, no greedy margin is below LEAST_MARGIN and the tokens do not keep repeating.
CASES = [
    (mistral, 7),
    (smollm3, 10),
    (smollm3_sliding, 7),
    (granite, 4),
    (olmo2, 9),
    (phi3, 11),
    (phi3_window, 1),
    (phi3_longrope_short, 1),
    (phi3_longrope_long, 18),
    (gemma3_text, 12),
    (gemma3, 102),
    (ministral3, 9),
    (mistral3, 3),
    (qwen3_5_text, 28),
    (qwen3_5, 7),
    (qwen2_window, 4),
    (qwen2_yarn, 1),
    (qwen3_yarn_mscale, 9),
    (qwen3_yarn_attention_factor, 12),
    (llama_linear, 2),
    (llama_yarn, 14),
]


def fill(case):
    """Sets parameters that start at zero or one to random values: norms, biases, the padding's embedding."""
    mean = 0.0 if case.norms_around_zero else 1.0
    for name, parameter in case.model.named_parameters():
        if "linear_attn.norm" in name:
            torch.nn.init.normal_(parameter, mean=1.0, std=0.2)
        elif "norm" in name:
            torch.nn.init.normal_(parameter, mean=mean, std=0.2)
        elif name.endswith("dt_bias"):
            torch.nn.init.normal_(parameter, std=1.0)
        elif name.endswith(".bias"):
            torch.nn.init.normal_(parameter, std=0.5)
        elif "embed_tokens" in name:
            torch.nn.init.normal_(parameter.data[0], std=TINY["initializer_range"])


def load(folder):
    """Loads the model with the class that config.json names. A message of transformers is an error."""
    config = json.loads((folder / "config.json").read_text())
    model_class = getattr(transformers, config["architectures"][0])
    messages = Messages(folder, "model")
    with messages.no_warnings("loading the model"):
        model, info = model_class.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
        )
    messages.problems += [f"{key}: {sorted(names)}" for key, names in info.items() if names]
    if messages.problems:
        sys.exit(f"{folder}: {messages.problems}")
    return model.eval()


def names_in_file(model, folder):
    """Returns each parameter's name in the saved file: that of the tensor with the same values."""
    saved = load_file(folder / "model.safetensors")
    names = {}
    for name, parameter in model.named_parameters():
        same = [key for key, tensor in saved.items() if torch.equal(tensor, parameter)]
        assert len(same) == 1, f"{name} is {same} in the file"
        names[name] = same[0]
    return names


def gradients(model, names=None):
    """Returns all gradients. With text only, a vision tower has none."""
    tensors = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.grad is not None:
            # PEFT's files do not contain the adapter's name, "default".
            written = names[name] if names else name.replace(".default.", ".")
            tensors["grad." + written] = parameter.grad.clone()
    return tensors


def packed_loss(model, ids):
    losses = []
    for row in ids.split([PACKED_FIRST, ids.shape[1] - PACKED_FIRST], dim=1):
        losses.append(loss_tensors(model, row, PACKED_UNTRAINED)["token_losses"])
    model.zero_grad()
    trained = [row[PACKED_UNTRAINED - 1 :] for row in losses]
    return {"packed_loss": torch.cat(trained).mean().reshape(1)}


def write_config4(folder, keys, logits, ids):
    """Writes config.json in the form of transformers 4 and checks that it produces the same logits."""
    config = json.loads((folder / "config.json").read_text())
    old = copy.deepcopy({key: value for key, value in config.items() if value is not None})
    rope = old.pop("rope_parameters")
    if "full_attention" in rope:
        old["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        rope = rope["full_attention"]
    old["rope_theta"] = rope.pop("rope_theta")
    rope.pop("partial_rotary_factor", None)
    if "original_max_position_embeddings" in old:  # Phi has it outside of rope_scaling
        rope.pop("original_max_position_embeddings", None)
    old["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    old["torch_dtype"] = old.pop("dtype")
    old["transformers_version"] = "4.46.0"
    old.pop("layer_types", None)
    old.pop("_sliding_window_pattern", None)
    old |= keys
    for key in [key for key, value in keys.items() if value is None]:
        del old[key]
    text = json.dumps(old, indent=2, sort_keys=True) + "\n"
    (folder / "config_transformers4.json").write_text(text)
    with tempfile.TemporaryDirectory() as other:
        (Path(other) / "config.json").write_text(text)
        shutil.copy(folder / "model.safetensors", other)
        assert torch.equal(load(Path(other))(ids).logits, logits), f"{folder}: different logits"


def make_case(folder, make, seed):
    torch.manual_seed(seed)
    case = make()
    fill(case)
    case.model.save_pretrained(folder)
    if case.others:
        weights = folder / "model.safetensors"
        save_file(load_file(weights) | case.others, weights, metadata={"format": "pt"})

    ids = torch.randint(3, VOCAB - (4 if case.others else 3), (1, case.length))
    model = load(folder)
    tensors = loss_tensors(model, ids) | gradients(model, names_in_file(model, folder))
    model.zero_grad()
    tensors |= packed_loss(model, ids)
    tensors |= greedy_reference(model, ids, GREEDY_PROMPT, GREEDY_NEW)
    if len(tensors["greedy"].unique()) < LEAST_DISTINCT:
        sys.exit("the greedy tokens repeat: change the seed")
    save_file(tensors, folder / "reference.safetensors")
    if case.config4 is not None:
        write_config4(folder, case.config4, tensors["logits"], ids)
    if case.adapter:
        make_adapter(folder, case, seed)


def make_adapter(base, case, seed):
    folder = base / "adapter"
    model = random_adapter(load(base), seed, r=3, lora_alpha=6, target_modules=case.adapter)
    save_adapter(model, folder, base)
    ids = torch.randint(3, VOCAB - (4 if case.others else 0), (1, case.length))
    model = PeftModel.from_pretrained(load(base), folder, is_trainable=True).eval()
    save_file(loss_tensors(model, ids) | gradients(model), folder / "reference.safetensors")


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    out = Path(sys.argv[1])
    be_deterministic()
    for make, seed in CASES:
        folder = out / make.__name__
        shutil.rmtree(folder, ignore_errors=True)
        make_case(folder, make, seed)
    (out / "versions.json").write_text(json.dumps(versions(COMMAND), indent=2) + "\n")


if __name__ == "__main__":
    main()
