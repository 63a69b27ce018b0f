#!/usr/bin/env python3
"""Times greedy generation in transformers and prints one line of JSON like benches/bench_generate.rs.

usage: generate.py --model DIR [--batch N] [--prompt N] [--new N] [--threads N]
                   [--base-type f32|bf16|int8|nf4]
needs: torch, transformers; bitsandbytes for int8 and nf4
"""
import argparse, json, resource, time
import torch
from loading import loaded
from transformers import __version__

ap = argparse.ArgumentParser()
ap.add_argument("--model", required=True)
ap.add_argument("--batch", type=int, default=16)
ap.add_argument("--prompt", type=int, default=64)
ap.add_argument("--new", type=int, default=128)
ap.add_argument("--threads", type=int, default=2)
ap.add_argument("--base-type", choices=["f32", "bf16", "int8", "nf4"], default="f32")
a = ap.parse_args()
torch.set_num_threads(a.threads)
model = loaded(a.model, a.base_type)
vocabulary = model.config.vocab_size
# The same prompts as in benches/bench_generate.rs.
ids = torch.tensor([[(i * 7919 + j * 104729 + 13) % vocabulary for j in range(a.prompt)] for i in range(a.batch)])
mask = torch.ones_like(ids)


def generate(new):
    start = time.perf_counter()
    with torch.inference_mode():
        out = model.generate(ids, attention_mask=mask, do_sample=False, min_new_tokens=new, max_new_tokens=new,
                             eos_token_id=None, pad_token_id=0)
    return time.perf_counter() - start, out[:, a.prompt:]


generate(4)
seconds, out = generate(a.new)
print(json.dumps({
    "who": f"transformers {__version__}, torch {torch.__version__}", "seconds": round(seconds, 4),
    "tokens_per_s": round(a.batch * a.new / seconds, 2),
    "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    "first": out[0, :8].tolist(),
}))
