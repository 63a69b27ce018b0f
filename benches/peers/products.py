#!/usr/bin/env python3
"""Times only the matrix products of a training step, like benches/bench_step.rs with --products, and prints one line
of JSON.

usage: products.py --shape D LAYERS HEADS KV_HEADS FF VOCAB SEQ BATCH [--rounds N] [--threads N]
needs: torch
"""
import argparse, json, statistics, time
import torch

ap = argparse.ArgumentParser()
ap.add_argument("--shape", type=int, nargs=8, required=True)
ap.add_argument("--rounds", type=int, default=5)
ap.add_argument("--threads", type=int, default=2)
a = ap.parse_args()
torch.set_num_threads(a.threads)
width, layers, heads, kv_heads, inner, vocabulary, seq, batch = a.shape
tokens, key_value = seq * batch, width // heads * kv_heads
linear = [(width, width, layers), (width, key_value, 2 * layers), (width, width, layers),
          (width, inner, 2 * layers), (inner, width, layers), (width, vocabulary, 1)]
seconds = flops = 0.0
for wide, out, count in linear:
    x, w, dy = torch.rand(tokens, wide), torch.rand(wide, out), torch.rand(tokens, out)
    # Outputs are allocated in advance: mixdistill reuses memory, too.
    y, dx, dw = torch.empty_like(dy), torch.empty_like(x), torch.empty_like(w)

    def once():
        start = time.perf_counter()
        torch.mm(x, w, out=y), torch.mm(dy, w.T, out=dx), torch.mm(x.T, dy, out=dw)
        return time.perf_counter() - start

    once()
    seconds += statistics.median(once() for _ in range(a.rounds)) * count
    flops += 6.0 * tokens * wide * out * count
print(json.dumps({"products_s": seconds, "gflops": round(flops / seconds / 1e9)}))
