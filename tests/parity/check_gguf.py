"""Reads GGUF files that mixdistill wrote with PyPI's `gguf` and with llama.cpp (llama-cpp-python).

    python tests/parity/check_gguf.py DIR [--without-llama-cpp]

Every folder in DIR is a case, as `tests/gguf/llama_cpp.rs` writes it: TYPE.gguf for some types, and
`expected.json` with texts and their tokens, prompts with their greedy continuations and logits, and the
context length. A case may have

  lora.gguf     an adapter for f32.gguf; expected.json then has `lora` in the form of `prompts`
  original.txt  the path of the file that the model was made from: all metadata must be equal, except for
                the keys in DIFFERENT

In llama.cpp, with an f32 cache, every file must produce the same tokens for texts and logits within
TOLERANCE, and the f32 file the same tokens after prompts. The exit status is 1 if a case failed or there
was none.
"""

import json
import sys
from pathlib import Path

import gguf
import numpy as np

# Largest difference of logits, relative to the largest logit. Block types are less exact.
TOLERANCE = {"f32": 1e-4, "f16": 5e-3, "bf16": 5e-2, "q8_0": 8e-2, "q4_0": 0.7}
# ggml computes GELU with a table of 16-bit numbers. Linear attention divides by norms, which amplifies f16 rounding.
LEAST_TOLERANCE = {("gemma3", "f32"): 1e-3, ("qwen3_5", "f16"): 2e-2}
F32 = 0  # ggml's number of this type
BY_TYPE = {0: "F32", 1: "F16", 2: "Q4_0", 7: "Q8_0", 32: "BF16"}

# Keys that may differ from those of SmolLM2's original file, and why.
DIFFERENT = {
    "general.name": "the folder's name; the converter derives it from the repository's name",
    "general.organization": "from the model card, which is not read",
    "general.finetune": "the converter derives it from the name",
    "general.basename": "the converter derives it from the name",
    "general.license": "from the model card, which is not read",
    "general.languages": "from the model card, which is not read",
    "general.file_type": "the file has another type",
    "llama.attention.key_length": "always written; the converter writes it only if config.json has head_dim",
    "llama.attention.value_length": "always written; as above",
    "tokenizer.ggml.add_space_prefix": "has no effect for byte-level BPE",
}


def fields(reader):
    """All metadata, by key."""
    return {
        key: field.contents()
        for key, field in reader.fields.items()
        if not key.startswith("GGUF.")
    }


def check_metadata(case, problems):
    """PyPI's package must read all metadata and tensors, with finite numbers and the right type."""
    for path in sorted(case.glob("*.gguf")):
        reader = gguf.GGUFReader(path)
        metadata = fields(reader)
        if path.stem == "lora":
            check_adapter(reader, metadata, problems)
            continue
        kind = BY_TYPE[metadata["general.file_type"]]
        if kind.lower() != path.stem:
            problems.append(f"{path.name} has the type {kind}")
        names = [tensor.name for tensor in reader.tensors]
        if len(set(names)) != len(names) or "token_embd.weight" not in names:
            problems.append(f"{path.name} has tensors {names[:5]}")
        for tensor in reader.tensors:
            numbers = gguf.dequantize(tensor.data, tensor.tensor_type)
            if not np.isfinite(numbers).all():
                problems.append(f"{path.name}: {tensor.name} is not finite")
        tokens = metadata["tokenizer.ggml.tokens"]
        if len(tokens) != len(metadata["tokenizer.ggml.token_type"]):
            problems.append(f"{path.name}: tokens and their types differ in number")


def check_adapter(reader, metadata, problems):
    """An adapter must have what llama.cpp needs: its kind, its alpha, and both matrices of each layer."""
    expected = {"general.type": "adapter", "adapter.type": "lora", "adapter.lora.alpha": 16.0}
    for key, value in expected.items():
        if metadata.get(key) != value:
            problems.append(f"lora.gguf: {key} is {metadata.get(key)}, not {value}")
    shapes = {tensor.name: tensor.shape.tolist() for tensor in reader.tensors}
    layers = {name.removesuffix(".lora_a") for name in shapes if name.endswith(".lora_a")}
    if not layers or len(shapes) != 2 * len(layers):
        problems.append(f"lora.gguf has tensors {sorted(shapes)[:4]}")
    for layer in layers:
        if shapes[f"{layer}.lora_a"][1] != shapes[f"{layer}.lora_b"][0]:
            problems.append(f"lora.gguf: {layer} has two ranks")


def check_blocks(case, problems):
    """The bytes of each type must be those that the reference makes of the f32 file's numbers."""
    exact = case / "f32.gguf"
    for name in ("q8_0", "q4_0", "f16", "bf16"):
        path = case / f"{name}.gguf"
        if not (path.is_file() and exact.is_file()):
            continue
        numbers = {tensor.name: tensor for tensor in gguf.GGUFReader(exact).tensors}
        for tensor in gguf.GGUFReader(path).tensors:
            expected = gguf.quantize(numbers[tensor.name].data, tensor.tensor_type)
            found = np.ascontiguousarray(tensor.data).view(np.uint8).reshape(-1)
            if not np.array_equal(np.ascontiguousarray(expected).view(np.uint8).reshape(-1), found):
                problems.append(f"{path.name}: {tensor.name} differs from the reference")


def check_original(case, problems):
    """Compares the metadata with the file that the model was made from."""
    original = case / "original.txt"
    if not original.is_file():
        return
    theirs = fields(gguf.GGUFReader(original.read_text().strip()))
    ours = fields(gguf.GGUFReader(case / "f32.gguf"))
    differing = [key for key in sorted({*theirs, *ours}) if theirs.get(key) != ours.get(key)]
    for key in differing:
        if key in DIFFERENT:
            print(f"  {key}: original {short(theirs.get(key))}, ours {short(ours.get(key))}: {DIFFERENT[key]}")
        else:
            problems.append(f"{key} is {short(ours.get(key))}, and {short(theirs.get(key))} in the original")
    print(f"  {len(theirs)} keys in the original, {len(ours)} in ours, {len(differing)} differ")


def short(value):
    text = "absent" if value is None else repr(value)
    return text if len(text) <= 60 else text[:60] + "..."


def logits_after(llama, prompt):
    llama.reset()
    llama.eval(prompt)
    return llama.scores[len(prompt) - 1].copy()


def follow(llama, prompt, count):
    """Returns the greedy continuation and the logits before its first token."""
    first = logits = logits_after(llama, prompt)
    tokens = []
    while len(tokens) < count:
        tokens.append(int(logits.argmax()))
        llama.eval(tokens[-1:])
        logits = llama.scores[len(prompt) + len(tokens) - 1]
    return tokens, first


def compare(case, name, llama, prompts, exact, problems):
    """Returns the largest difference of logits, relative to the largest logit."""
    worst = 0.0
    for at, prompt in enumerate(prompts):
        tokens, logits = follow(llama, prompt["prompt"], len(prompt["greedy"]))
        if "logits" in prompt:
            ours = np.array(prompt["logits"], dtype=np.float32)
            worst = max(worst, float(np.abs(logits - ours).max() / np.abs(ours).max()))
        if exact and tokens != prompt["greedy"]:
            problems.append(f"{name}, prompt {at}: continues with {tokens}, not {prompt['greedy']}")
    kind = name.removeprefix("lora on ")
    allowed = TOLERANCE[kind]
    for (family, of_kind), least in LEAST_TOLERANCE.items():
        if case.name.startswith(family) and kind == of_kind:
            allowed = max(allowed, least)
    if not worst <= allowed:
        problems.append(f"{name}: logits differ by {worst:.1e} of the largest")
    return worst


def check_llama_cpp(case, expected, problems):
    from llama_cpp import Llama

    figures = []
    for path in sorted(case.glob("*.gguf")):
        if path.stem == "lora":
            continue
        options = dict(n_ctx=expected["n_ctx"], logits_all=True, n_threads=2, verbose=False)
        llama = Llama(str(path), type_k=F32, type_v=F32, flash_attn=False, **options)
        for text in expected["texts"]:
            tokens = llama.tokenize(text["text"].encode(), add_bos=False, special=True)
            if tokens != text["tokens"]:
                problems.append(f"{path.name}: {text['text']!r} is {tokens}, not {text['tokens']}")
        worst = compare(case, path.stem, llama, expected["prompts"], path.stem == "f32", problems)
        figures.append(f"{path.stem} {worst:.1e}")
        adapter = case / "lora.gguf"
        if path.stem == "f32" and adapter.is_file():
            llama = Llama(str(path), type_k=F32, type_v=F32, lora_path=str(adapter), **options)
            worst = compare(case, "lora on f32", llama, expected["lora"], True, problems)
            figures.append(f"adapter {worst:.1e}")
    return ", ".join(figures)


def main():
    arguments = [argument for argument in sys.argv[1:] if not argument.startswith("--")]
    with_llama_cpp = "--without-llama-cpp" not in sys.argv
    cases = sorted(path.parent for path in Path(arguments[0]).glob("*/expected.json"))
    failed = not cases
    for case in cases:
        problems = []
        expected = json.loads((case / "expected.json").read_text())
        check_metadata(case, problems)
        check_blocks(case, problems)
        check_original(case, problems)
        figures = check_llama_cpp(case, expected, problems) if with_llama_cpp else "metadata read"
        print(f"{case.name}: {figures}{' FAILED' if problems else ''}")
        for problem in problems:
            print(f"  {problem}")
        failed |= bool(problems)
    if not cases:
        print("no cases")
    return int(failed)


sys.exit(main())
