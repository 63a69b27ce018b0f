#!/usr/bin/env python3
"""Compares the speed and memory of mixdistill with other tools and prints a table with the ratios of the medians.
Both sides run alternately.

Build the examples first: cargo build --examples. Run this script with a Python that has torch, transformers, peft, and
datasets. If it also has llama-cpp-python and gguf, llama.cpp is part of the comparison.

cases with random weights; without --torch, their PyTorch column is skipped:
  small                     a training step, 6.5M parameters
  smollm2, masked           a training step in the shape of SmolLM2-135M; the same with loss on half of the tokens
cases with --model:
  lora                      a LoRA step, 4 rows of 600 tokens
  long, long_recomputed     a step at 2,048 tokens; the same with activation checkpointing
  long_lora, long_lora_recomputed
                            the same two with LoRA
  step_TYPE, step_TYPE_recomputed
                            the same two with LoRA on a quantized base; TYPE is bf16, int8, or nf4
  generate1, generate16     greedy generation with batches of 1 and 16
  generate1_TYPE, generate16_TYPE
                            the same with weights in bf16, int8, or nf4
  data                      encode, mix, and pack answers; needs --gsm8k
"""
import argparse, importlib.util, json, os, statistics, subprocess, sys, tempfile
from pathlib import Path

here = Path(__file__).resolve().parent
ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
ap.add_argument("--rounds", type=int, default=3, help="runs of each side (3)")
ap.add_argument("--only", nargs="*", metavar="CASE", help="run only these cases")
ap.add_argument("--torch", type=Path, metavar="FILE",
                help="a PyTorch training script for the cases with random weights; it takes --shape, --steps, "
                     "--threads, and --trained-share like bench_step, takes --compile for torch.compile, and prints "
                     "tokens_per_s and peak_rss_mib as one line of JSON")
ap.add_argument("--gsm8k", type=Path, metavar="DIR", default="data/gsm8k",
                help="folder with GSM8K's test.jsonl and test_socratic.jsonl (data/gsm8k)")
ap.add_argument("--model", metavar="DIR", default=os.environ.get("MIXDISTILL_SMOLLM2"),
                help="folder of SmolLM2-135M-Instruct; the default is the variable MIXDISTILL_SMOLLM2")
ap.add_argument("--rows", type=int, default=100_000, help="answers to encode in the case data (100000)")
ap.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of each side; one per core by default")
ap.add_argument("--out", type=Path, metavar="FILE.md", help="also write the table to this file")
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
    """Writes long (Socratic) and short answers to `count` problems, numbered so that all problems differ."""
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


def of_shape(shape, compiled=True):
    """The PyTorch commands for a step with random weights; none without --torch."""
    if not a.torch:
        return {}
    eager = peer(a.torch, *shape, *threads)
    return {"PyTorch eager": eager} | ({"torch.compile": [*eager, "--compile"]} if compiled else {})


# Description, figure, mixdistill's command, the other tools' commands.
cases = {
    "small": ("training step, 6.5M parameters, tokens/s", "tokens_per_s", ours("bench_step", *small), of_shape(small)),
    "smollm2": ("training step, SmolLM2-135M shape, tokens/s", "tokens_per_s", ours("bench_step", *smollm2),
                of_shape(smollm2)),
    "masked": ("the same, loss on half of the tokens, tokens/s", "tokens_per_s", ours("bench_step", *masked),
               of_shape(masked, compiled=False)),
    "generate16": ("greedy generation, SmolLM2-135M, batch 16, tokens/s", "tokens_per_s",
                   ours("bench_generate", "--model", a.model, "--batch", 16), {
        "transformers": peer(here / "peers/generate.py", "--model", a.model, "--batch", 16, *threads)}),
    "generate1": ("greedy generation, SmolLM2-135M, batch 1, tokens/s", "tokens_per_s",
                  ours("bench_generate", "--model", a.model, "--batch", 1), generators),
    "data": ("encode, mix, and pack, answers/s", "rows_per_s", ours("bench_data", *files), {
        "datasets.map": peer(here / "peers/data.py", *files, "--processes", a.threads)}),
}


def of_model(what, seq, batch, lora=None, recomputed=False, compiled=False):
    """A step of the model in --model, whole or with adapters, compared with transformers or PEFT."""
    flags = ["--model", a.model, "--seq", seq, "--batch", batch, "--steps", 4]
    flags += ["--lora-rank", lora] if lora else []
    theirs = peer(here / "peers/step.py", *flags, *threads, *(["--checkpointing"] if recomputed else []))
    name = "PEFT" if lora else "transformers"
    peers = {name: theirs} | ({f"{name}, torch.compile": [*theirs, "--compile"]} if compiled else {})
    return what, "tokens_per_s", ours("bench_step", *flags, *(["--recompute"] if recomputed else [])), peers


cases |= {
    "lora": of_model("LoRA step, SmolLM2-135M, 4 rows of 600 tokens, rank 8, tokens/s", 600, 4, 8, compiled=True),
    "long": of_model("step at 2,048 tokens, SmolLM2-135M, tokens/s", 2048, 1),
    "long_recomputed": of_model("the same, activation checkpointing", 2048, 1, recomputed=True),
    "long_lora": of_model("LoRA step at 2,048 tokens, rank 8, tokens/s", 2048, 1, 8),
    "long_lora_recomputed": of_model("the same, activation checkpointing", 2048, 1, 8, recomputed=True),
}

of_llama = {"int8": "q8_0", "nf4": "q4_0"}
for base in ("bf16", "int8", "nf4"):
    for recomputed in (False, True):
        what = f"LoRA step at 2,048 tokens, {base} base" + (", activation checkpointing" if recomputed else "")
        case = of_model(f"{what}, tokens/s", 2048, 1, 8, recomputed=recomputed)
        extra = ["--base-type", base]
        cases[f"step_{base}" + ("_recomputed" if recomputed else "")] = (
            *case[:2], [*case[2], *extra], {name: [*theirs, *extra] for name, theirs in case[3].items()})
    for batch in (1, 16):
        flags = ["--model", a.model, "--batch", batch, "--base-type", base]
        peers = {"transformers": peer(here / "peers/generate.py", *flags, *threads)}
        if batch == 1 and base in of_llama and "llama.cpp" in generators:
            peers[f"llama.cpp, {of_llama[base]}"] = [*generators["llama.cpp"], "--base-type", of_llama[base]]
        # The int8 head makes the model comparable with llama.cpp's q8_0.
        embeddings = ["--embedding-type", "int8"] if base == "int8" else []
        cases[f"generate{batch}_{base}"] = (
            f"greedy generation, weights in {base}, batch {batch}, tokens/s", "tokens_per_s",
            ours("bench_generate", *flags, *embeddings), peers)


def machine():
    """Describes the CPU, and the speed of the matrix products alone on both sides."""
    told = subprocess.run(["lscpu", "--json"], capture_output=True, text=True).stdout
    flat = lambda entries: [e for entry in entries for e in [entry, *flat(entry.get("children", []))]]
    facts = {entry["field"].rstrip(":"): entry["data"] for entry in flat(json.loads(told)["lscpu"])}
    keys = ["Model name", "CPU(s)", "Thread(s) per core", "L1d cache", "L2 cache", "L3 cache", "L1d", "L2", "L3"]
    yield ", ".join(f"{key} {facts[key]}" for key in keys if facts.get(key))
    for name, shape in (("6.5M", small), ("SmolLM2 shape", smollm2)):
        gemm = run(ours("bench_step", *shape[:9], "--steps", 5, "--products"))["gflops"]
        mkl = run(peer(here / "peers/products.py", *shape[:9], *threads))["gflops"]
        yield f"matrix products of the {name} step alone: {gemm:.0f} GFLOP/s in mixdistill, {mkl:.0f} in PyTorch"


if unknown := sorted(set(a.only or ()) - cases.keys()):
    ap.error(f"unknown cases: {', '.join(unknown)}. See --help")
for fact in machine():
    print(fact, file=sys.stderr)
lines = ["| what | mixdistill | other tool | ratio | peak memory, MiB |", "| --- | --- | --- | --- | --- |"]
for key, (what, figure, our_command, peers) in cases.items():
    if a.only and key not in a.only:
        continue
    if "--model" in our_command and not a.model:
        print(f"{key} is skipped: it needs --model or MIXDISTILL_SMOLLM2", file=sys.stderr)
        continue
    if not peers:
        print(f"{key}: the PyTorch column is skipped, because it needs --torch", file=sys.stderr)
    if key == "data":
        if missing := [name for name in ("test_socratic.jsonl", "test.jsonl") if not (a.gsm8k / name).exists()]:
            where = "docs/example-data.md says where to get it"
            print(f"{key} is skipped: {a.gsm8k} has no {' and no '.join(missing)}; {where}", file=sys.stderr)
            continue
        gsm8k_pairs(folder.name, a.rows // 2)
    results = {name: [] for name in ("mixdistill", *peers)}
    for round in range(a.rounds):
        for name, command in (("mixdistill", our_command), *peers.items()):
            print(f"{key}: round {round + 1} of {a.rounds}, {name}", file=sys.stderr)
            results[name].append(run(command))
    answers = {name: result[0].get("first") for name, result in results.items()}
    # With quantized weights, the tokens may differ.
    if len({str(answer) for answer in answers.values()}) > 1 and key in ("generate1", "generate16"):
        sys.exit(f"{key}: the tools generated different tokens: {answers}")
    median = lambda name, key: statistics.median(result[key] for result in results[name])
    if not peers:
        speed, memory = (median("mixdistill", key) for key in (figure, "peak_rss_mib"))
        lines.append(f"| {what} | {speed:,.0f} | | | {memory:,.0f} |")
        print(lines[-1], file=sys.stderr)
    for name in peers:
        speed, memory = (
            [median(side, key) for side in ("mixdistill", name)] for key in (figure, "peak_rss_mib"))
        lines.append(f"| {what} | {speed[0]:,.0f} | {name}: {speed[1]:,.0f} | **{speed[0] / speed[1]:.2f}** | "
                     f"{memory[0]:,.0f} / {memory[1]:,.0f} = {memory[0] / memory[1]:.2f} |")
        print(lines[-1], file=sys.stderr)
print("\n".join(lines))
if a.out:
    a.out.write_text("\n".join(lines) + "\n")
