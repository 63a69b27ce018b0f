#!/usr/bin/env python3
"""Times greedy generation of one prompt in llama.cpp with the same weights and prints one line of JSON like
benches/bench_generate.rs. Writes the weights as a GGUF file next to the model's folder first, unless that file exists
and is newer than the weights.

usage: llama.py --model DIR [--prompt N] [--new N] [--threads N] [--gguf FILE]
                [--base-type f32|q8_0|q4_0]
needs: llama-cpp-python, gguf, safetensors, torch; a model of the Llama architecture
"""
import argparse, json, os, resource, time
from pathlib import Path

# NumPy's own threads would compete with the timed ones.
os.environ["OPENBLAS_NUM_THREADS"] = "1"
import gguf, llama_cpp
import numpy as np

ap = argparse.ArgumentParser()
ap.add_argument("--model", required=True, type=Path)
ap.add_argument("--prompt", type=int, default=64)
ap.add_argument("--new", type=int, default=128)
ap.add_argument("--threads", type=int, default=2)
ap.add_argument("--gguf", type=Path)
ap.add_argument("--base-type", choices=["f32", "q8_0", "q4_0"], default="f32", help="type of the weight matrices")
a = ap.parse_args()
config = json.load(open(a.model / "config.json"))
heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
layers, vocabulary = config["num_hidden_layers"], config["vocab_size"]
file = a.gguf or a.model.parent / f"{a.model.resolve().name}.{a.base_type}.gguf"


def halves_apart(weight, heads):
    """Reorders the rows of q or k for llama.cpp's RoPE, which rotates neighboring rows."""
    rows, width = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, width).swapaxes(1, 2).reshape(rows, width)


def write(path):
    from safetensors.torch import load_file
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(layers)
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_rope_dimension_count(config.get("head_dim") or config["hidden_size"] // heads)
    writer.add_rope_freq_base((config.get("rope_parameters") or config).get("rope_theta", 10000.0))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(vocabulary)
    writer.add_file_type(gguf.LlamaFileType["ALL_F32" if a.base_type == "f32" else f"MOSTLY_{a.base_type.upper()}"])
    # Tokens are passed as numbers.
    writer.add_tokenizer_model("none")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, layers)
    for part in sorted(a.model.glob("*.safetensors")):
        for name, tensor in load_file(part).items():
            values = tensor.float().numpy()
            for projection, count in (("q_proj", heads), ("k_proj", kv_heads)):
                if f".{projection}." in name:
                    values = halves_apart(values, count)
            place = names.get_name(name, (".weight",))
            if place is None:
                raise SystemExit(f"{a.model}: llama.cpp has no tensor for {name}")
            values = np.ascontiguousarray(values)
            kind = gguf.GGMLQuantizationType[a.base_type.upper() if values.ndim == 2 else "F32"]
            writer.add_tensor(place, gguf.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if not file.exists() or file.stat().st_mtime < max(f.stat().st_mtime for f in a.model.glob("*.safetensors")):
    write(file.with_suffix(".part"))
    file.with_suffix(".part").rename(file)
model = llama_cpp.Llama(str(file), n_ctx=a.prompt + a.new, n_batch=a.prompt, n_threads=a.threads,
                        n_threads_batch=a.threads, type_k=0, type_v=0, verbose=False)
# The same prompt as in benches/bench_generate.rs.
prompt = [(j * 104729 + 13) % vocabulary for j in range(a.prompt)]


def generate(new):
    start, out, ids = time.perf_counter(), [], prompt
    model.reset()
    for _ in range(new):
        model.eval(ids)
        scores = llama_cpp.llama_get_logits_ith(model.ctx, -1)
        out.append(int(np.ctypeslib.as_array(scores, shape=(vocabulary,)).argmax()))
        ids = out[-1:]
    return time.perf_counter() - start, out


generate(4)
seconds, out = generate(a.new)
print(json.dumps({
    "who": f"llama-cpp-python {llama_cpp.__version__}",
    "built_for": llama_cpp.llama_print_system_info().decode().strip(), "seconds": round(seconds, 4),
    "tokens_per_s": round(a.new / seconds, 2),
    "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, "first": out[:8],
}))
