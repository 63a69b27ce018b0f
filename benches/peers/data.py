#!/usr/bin/env python3
"""Times the data path with Hugging Face datasets and prints one line of JSON like benches/bench_data.rs: encode both
answers of each problem with the model's chat template, choose one per problem, and pack. The peak memory is that of
the largest process.

usage: data.py --long L.jsonl --short S.jsonl --model DIR [--processes N]
needs: transformers, datasets
"""
import argparse, json, random, resource, time
import datasets
from datasets import Dataset, __version__
from transformers import AutoTokenizer

ap = argparse.ArgumentParser()
ap.add_argument("--long", required=True)
ap.add_argument("--short", required=True)
ap.add_argument("--model", required=True)
ap.add_argument("--processes", type=int, default=2)
ap.add_argument("--length", type=int, default=2048)
a = ap.parse_args()
datasets.disable_progress_bars()
datasets.disable_caching()
tokenizer = AutoTokenizer.from_pretrained(a.model)
long, short = (datasets.load_dataset("json", data_files=f, split="train", download_mode="force_redownload") for f in (a.long, a.short))


def encode(rows):
    """Returns the tokens of prompt and answer, and the number of prompt tokens. One call per batch is fastest."""
    prompts = [[{"role": "user", "content": p}] for p in rows["problem"]]
    whole = [m + [{"role": "assistant", "content": s}] for m, s in zip(prompts, rows["solution"])]
    prompt_text = tokenizer.apply_chat_template(prompts, tokenize=False, add_generation_prompt=True)
    text = tokenizer.apply_chat_template(whole, tokenize=False)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    prompt = [len(x) for x in tokenizer(prompt_text, add_special_tokens=False)["input_ids"]]
    return {"input_ids": ids, "prompt": prompt}


def pack(rows):
    """Concatenates rows into pieces of at most `length` tokens, without splitting a row."""
    out, ids, weights, starts = {"input_ids": [], "weights": [], "starts": []}, [], [], []
    for row, prompt in zip(rows["input_ids"], rows["prompt"]):
        if ids and len(ids) + len(row) > a.length:
            for key, value in zip(out, (ids, weights, starts)):
                out[key].append(value)
            ids, weights, starts = [], [], []
        starts += [len(ids)] * len(row)
        weights += [0] * prompt + [1] * (len(row) - prompt)
        ids += row
    for key, value in zip(out, (ids, weights, starts)):
        out[key].append(value)
    return out


start = time.perf_counter()
long_ids, short_ids = (x.map(encode, batched=True, remove_columns=x.column_names, num_proc=a.processes)
                       for x in (long, short))
encoded = time.perf_counter()
problems = len(long)
chosen = set(random.Random(0).sample(range(problems), problems // 5))
order = list(range(problems))
random.Random(1).shuffle(order)
both = datasets.concatenate_datasets([long_ids, short_ids])
mixed = both.select([i if i in chosen else problems + i for i in order])
packed = mixed.map(pack, batched=True, remove_columns=mixed.column_names, num_proc=a.processes)
seconds = time.perf_counter() - start
print(json.dumps({
    "who": f"datasets {__version__}", "rows": 2 * problems, "seconds": round(seconds, 3),
    "rows_per_s": round(2 * problems / seconds, 1), "encode_s": round(encoded - start, 3), "packed_rows": len(packed),
    "tokens": sum(map(len, packed["input_ids"])),
    "peak_rss_mib": max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) // 1024,
}))
