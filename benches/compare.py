#!/usr/bin/env python3
"""Runs this library and its peers in turn, A B A B, and prints a table of ratios of medians.

usage: compare.py [--rounds N] [--only CASE ...] [--torch FILE] [--model DIR] [--rows N] [--out FILE.md]
cases: small, smollm2, masked, lora, long, long_recomputed, long_lora, long_lora_recomputed, generate16,
       generate1, data; with a base in fewer bits: step_TYPE, step_TYPE_recomputed, generate1_TYPE,
       generate16_TYPE for TYPE of bf16, int8, nf4
needs: the examples bench_step, bench_generate and bench_data, built (cargo build --examples); a Python
with torch, transformers, peft and datasets, which runs this script, and llama-cpp-python and gguf if
llama.cpp is to be among the peers; the folder of SmolLM2-135M-Instruct for generation and data; pairs of answers for the data, made here from GSM8K.
"""
import argparse, importlib.util, json, os, statistics, subprocess, sys, tempfile
from pathlib import Path

here = Path(__file__).resolve().parent
ap = argparse.ArgumentParser()
ap.add_argument("--rounds", type=int, default=3)
ap.add_argument("--only", nargs="*")
ap.add_argument("--torch", default=here / "../../shared/bench/torch_train_step.py", type=Path)
ap.add_argument("--gsm8k", default=here / "../../shared/data/gsm8k", type=Path)
ap.add_argument("--model", default=os.environ.get("MIXDISTILL_SMOLLM2"))
ap.add_argument("--rows", type=int, default=100_000, help="answers to encode")
ap.add_argument("--threads", type=int, default=os.cpu_count())
ap.add_argument("--out", type=Path)
a = ap.parse_args()
target = Path(os.environ.get("CARGO_TARGET_DIR", here.parent / "target"))
examples = target / "debug/examples"
environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false",
               "OMP_NUM_THREADS": str(a.threads)}
threads = ["--threads", str(a.threads)]


def ours(example, *flags):
    return [str(examples / example), *threads, *map(str, flags)]


def peer(script, *flags):
    return [sys.executable, str(script), *map(str, flags)]


def run(command):
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def gsm8k_pairs(folder, count):
    """Long (sub-questions) and short answers to as many problems, numbered so that all differ."""
    read = lambda name: [json.loads(line) for line in open(a.gsm8k / name)]
    long, short = read("test_socratic.jsonl"), read("test.jsonl")
    for name, rows in (("long", long), ("short", short)):
        with open(Path(folder) / f"{name}.jsonl", "w") as file:
            for i in range(count):
                problem = f"{short[i % len(short)]['question']} (Case {i // len(rows)})"
                record = {"id": f"p{i}", "problem": problem, "solution": rows[i % len(rows)]["answer"]}
                file.write(json.dumps(record) + "\n")


generators = {"transformers": peer(here / "peers/generate.py", "--model", a.model, "--batch", 1, *threads)}
if importlib.util.find_spec("llama_cpp") and importlib.util.find_spec("gguf"):
    generators["llama.cpp"] = peer(here / "peers/llama.py", "--model", a.model, *threads)
small = ["--shape", 256, 6, 8, 4, 704, 4096, 256, 8, "--steps", 10]
smollm2 = ["--shape", 576, 30, 9, 3, 1536, 49152, 256, 2, "--steps", 4]
masked = [*smollm2, "--trained-share", 0.5]
folder = tempfile.TemporaryDirectory()
files = ["--long", f"{folder.name}/long.jsonl", "--short", f"{folder.name}/short.jsonl", "--model", a.model]
# Name, figure, our command, the peers' commands.
cases = {
    "small": ("training step, 6.5M parameters, tokens/s", "tokens_per_s", ours("bench_step", *small), {
        "PyTorch eager": peer(a.torch, *small, *threads), "torch.compile": peer(a.torch, *small, *threads, "--compile")}),
    "smollm2": ("training step, SmolLM2-135M shape, tokens/s", "tokens_per_s", ours("bench_step", *smollm2), {
        "PyTorch eager": peer(a.torch, *smollm2, *threads),
        "torch.compile": peer(a.torch, *smollm2, *threads, "--compile")}),
    "masked": ("the same, half of the tokens trained, tokens/s", "tokens_per_s", ours("bench_step", *masked), {
        "PyTorch eager": peer(a.torch, *masked, *threads)}),
    "generate16": ("greedy generation, SmolLM2-135M, batch 16, tokens/s", "tokens_per_s",
                   ours("bench_generate", "--model", a.model, "--batch", 16), {
        "transformers": peer(here / "peers/generate.py", "--model", a.model, "--batch", 16, *threads)}),
    "generate1": ("greedy generation, SmolLM2-135M, batch 1, tokens/s", "tokens_per_s",
                  ours("bench_generate", "--model", a.model, "--batch", 1), generators),
    "data": ("encode, mix and pack, answers/s", "rows_per_s", ours("bench_data", *files), {
        "datasets.map": peer(here / "peers/data.py", *files, "--processes", a.threads)}),
}


def of_model(what, seq, batch, lora=None, recomputed=False, compiled=False):
    """A step of the model itself, whole or with adapters, beside transformers and PEFT."""
    flags = ["--model", a.model, "--seq", seq, "--batch", batch, "--steps", 4]
    flags += ["--lora-rank", lora] if lora else []
    theirs = peer(here / "peers/step.py", *flags, *threads, *(["--checkpointing"] if recomputed else []))
    name = "PEFT" if lora else "transformers"
    peers = {name: theirs} | ({f"{name}, torch.compile": [*theirs, "--compile"]} if compiled else {})
    return what, "tokens_per_s", ours("bench_step", *flags, *(["--recompute"] if recomputed else [])), peers


cases |= {
    "lora": of_model("LoRA step, SmolLM2-135M, 4 rows of 600 tokens, rank 8, tokens/s", 600, 4, 8, compiled=True),
    "long": of_model("step at 2,048 tokens, SmolLM2-135M, tokens/s", 2048, 1),
    "long_recomputed": of_model("the same, activations recomputed", 2048, 1, recomputed=True),
    "long_lora": of_model("LoRA step at 2,048 tokens, rank 8, tokens/s", 2048, 1, 8),
    "long_lora_recomputed": of_model("the same, activations recomputed", 2048, 1, 8, recomputed=True),
}

of_llama = {"int8": "q8_0", "nf4": "q4_0"}
for base in ("bf16", "int8", "nf4"):
    for recomputed in (False, True):
        what = f"LoRA step at 2,048 tokens, base in {base}" + (", activations recomputed" if recomputed else "")
        case = of_model(f"{what}, tokens/s", 2048, 1, 8, recomputed=recomputed)
        extra = ["--base-type", base]
        cases[f"step_{base}" + ("_recomputed" if recomputed else "")] = (
            *case[:2], [*case[2], *extra], {name: [*theirs, *extra] for name, theirs in case[3].items()})
    for batch in (1, 16):
        flags = ["--model", a.model, "--batch", batch, "--base-type", base]
        peers = {"transformers": peer(here / "peers/generate.py", *flags, *threads)}
        if batch == 1 and base in of_llama and "llama.cpp" in generators:
            peers[f"llama.cpp, {of_llama[base]}"] = [*generators["llama.cpp"], "--base-type", of_llama[base]]
        # As bitsandbytes and llama.cpp have it: the head like the others where it is 8 bits.
        embeddings = ["--embedding-type", "int8"] if base == "int8" else []
        cases[f"generate{batch}_{base}"] = (
            f"greedy generation, weights in {base}, batch {batch}, tokens/s", "tokens_per_s",
            ours("bench_generate", *flags, *embeddings), peers)


def machine():
    """The processor, and what the products alone reach on it."""
    told = subprocess.run(["lscpu", "--json"], capture_output=True, text=True).stdout
    flat = lambda entries: [e for entry in entries for e in [entry, *flat(entry.get("children", []))]]
    facts = {entry["field"].rstrip(":"): entry["data"] for entry in flat(json.loads(told)["lscpu"])}
    keys = ["Model name", "CPU(s)", "Thread(s) per core", "L1d cache", "L2 cache", "L3 cache", "L1d", "L2", "L3"]
    yield ", ".join(f"{key} {facts[key]}" for key in keys if facts.get(key))
    for name, shape in (("6.5M", small), ("SmolLM2 shape", smollm2)):
        gemm = run(ours("bench_step", *shape[:9], "--steps", 5, "--products"))["gflops"]
        mkl = run(peer(here / "peers/products.py", *shape[:9], *threads))["gflops"]
        yield f"products of the {name} step alone: {gemm:.0f} GFLOP/s here, {mkl:.0f} in PyTorch"


for fact in machine():
    print(fact, file=sys.stderr)
lines = ["| what | mixdistill | peer | ratio | peak memory, MiB |", "| --- | --- | --- | --- | --- |"]
for key, (what, figure, our_command, peers) in cases.items():
    if a.only and key not in a.only:
        continue
    if "--model" in our_command and not a.model:
        print(f"{key} is left out: no --model and no MIXDISTILL_SMOLLM2", file=sys.stderr)
        continue
    if key == "data":
        gsm8k_pairs(folder.name, a.rows // 2)
    results = {name: [] for name in ("mixdistill", *peers)}
    for round in range(a.rounds):
        for name, command in (("mixdistill", our_command), *peers.items()):
            print(f"{key}: round {round + 1} of {a.rounds}, {name}", file=sys.stderr)
            results[name].append(run(command))
    answers = {name: result[0].get("first") for name, result in results.items()}
    # Weights in fewer bits are not those of the other side.
    if len({str(answer) for answer in answers.values()}) > 1 and key in ("generate1", "generate16"):
        sys.exit(f"the two sides generated different tokens: {answers}")
    median = lambda name, key: statistics.median(result[key] for result in results[name])
    for name in peers:
        speed, memory = (
            [median(side, key) for side in ("mixdistill", name)] for key in (figure, "peak_rss_mib"))
        lines.append(f"| {what} | {speed[0]:,.0f} | {name}: {speed[1]:,.0f} | **{speed[0] / speed[1]:.2f}** | "
                     f"{memory[0]:,.0f} / {memory[1]:,.0f} = {memory[0] / memory[1]:.2f} |")
        print(lines[-1], file=sys.stderr)
print("\n".join(lines))
if a.out:
    a.out.write_text("\n".join(lines) + "\n")
