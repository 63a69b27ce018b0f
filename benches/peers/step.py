#!/usr/bin/env python3
"""Times one optimizer step of a model in transformers, whole or with PEFT's adapters, and prints one line of JSON like
benches/bench_step.rs.

usage: step.py --model DIR [--seq N] [--batch N] [--lora-rank R] [--checkpointing] [--compile]
               [--steps N] [--warm-up N] [--threads N] [--base-type f32|bf16|int8|nf4]
needs: torch, transformers, peft; bitsandbytes for int8 and nf4
"""
import argparse, json, resource, statistics, time
import torch
from peft import LoraConfig, get_peft_model
from loading import loaded
from transformers import __version__

ap = argparse.ArgumentParser()
ap.add_argument("--model", required=True)
ap.add_argument("--seq", type=int, default=600)
ap.add_argument("--batch", type=int, default=4)
ap.add_argument("--lora-rank", type=int)
ap.add_argument("--checkpointing", action="store_true")
ap.add_argument("--compile", action="store_true")
ap.add_argument("--steps", type=int, default=4)
ap.add_argument("--warm-up", type=int, default=2)
ap.add_argument("--threads", type=int, default=2)
ap.add_argument("--base-type", choices=["f32", "bf16", "int8", "nf4"], default="f32")
a = ap.parse_args()
torch.set_num_threads(a.threads)
torch.manual_seed(0)
model = loaded(a.model, a.base_type)
model.config.use_cache = False
params = sum(p.numel() for p in model.parameters())
if a.checkpointing:
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
if a.lora_rank:
    config = LoraConfig(r=a.lora_rank, lora_alpha=2 * a.lora_rank, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(model, config)
model.train()
step_model = torch.compile(model) if a.compile else model
trained = [p for p in model.parameters() if p.requires_grad]
optimizer = torch.optim.AdamW(trained, 1e-3, fused=True)
times = []
for i in range(a.steps + a.warm_up):
    # One more token than positions, as in benches/bench_step.rs: the last one is only a target.
    ids = torch.randint(0, model.config.vocab_size, (a.batch, a.seq + 1))
    start = time.perf_counter()
    logits = step_model(input_ids=ids[:, :-1]).logits.float()
    loss = torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), ids[:, 1:].reshape(-1))
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    if i >= a.warm_up:
        times.append(time.perf_counter() - start)
step = statistics.median(times)
print(json.dumps({
    "who": f"transformers {__version__}, torch {torch.__version__}" + (" compiled" if a.compile else ""),
    "params": params, "step_s": round(step, 4), "tokens_per_s": round(a.batch * a.seq / step, 1),
    "loss": round(loss.item(), 4), "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
}))
