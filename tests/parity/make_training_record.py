#!/usr/bin/env python3
"""Records 20 optimizer steps of PyTorch on a small model, with its AdamW, gradient clipping, and schedule.

usage: make_training_record.py FIXTURES
Reads FIXTURES/qwen3 and writes FIXTURES/training_record.safetensors: the rows, the loss, gradient norm, and learning
rate of each step, and all parameters at the end. Needs torch, transformers, and safetensors.
"""
import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

STEPS, ROWS, LENGTH, WARMUP, RATE = 20, 4, 24, 4, 3e-3
# Larger than the usual 1e-8, which would let rounding errors of near-zero gradients move parameters by full steps.
EPSILON = 1e-5

fixtures = Path(sys.argv[1])
torch.manual_seed(0)
torch.set_num_threads(1)
model = AutoModelForCausalLM.from_pretrained(fixtures / "qwen3", dtype=torch.float32, attn_implementation="eager")
model.train()
rows = torch.randint(0, model.config.vocab_size, (STEPS * ROWS, LENGTH))
prompts = torch.randint(1, LENGTH - 2, (STEPS * ROWS,))

# Weight decay applies to matrices, not to norms.
groups = [
    {"params": [p for p in model.parameters() if p.dim() >= 2], "weight_decay": 0.1},
    {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0},
]
optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.95), eps=EPSILON)
rise = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=1 / WARMUP, total_iters=WARMUP - 1)
fall = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=STEPS - WARMUP)
schedule = torch.optim.lr_scheduler.SequentialLR(optimizer, [rise, fall], milestones=[WARMUP])
losses, norms, rates = [], [], []
for step in range(STEPS):
    part = slice(step * ROWS, (step + 1) * ROWS)
    labels = rows[part].clone()
    for label, prompt in zip(labels, prompts[part]):
        label[:prompt] = -100
    # The mean over all trained tokens of the step, across rows.
    logits = model(rows[part]).logits[:, :-1].reshape(-1, model.config.vocab_size)
    loss = torch.nn.functional.cross_entropy(logits, labels[:, 1:].reshape(-1), ignore_index=-100)
    loss.backward()
    norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item())
    losses.append(loss.item())
    rates.append(optimizer.param_groups[0]["lr"])
    optimizer.step()
    optimizer.zero_grad()
    schedule.step()
record = {name: value.detach().clone() for name, value in model.named_parameters()}
record |= {"rows": rows, "prompts": prompts}
record |= {name: torch.tensor(x, dtype=torch.float64) for name, x in [("losses", losses), ("norms", norms), ("rates", rates)]}
save_file(record, fixtures / "training_record.safetensors")
print(f"loss {losses[0]:.4f} -> {losses[-1]:.4f}, gradient norms {min(norms):.3f} to {max(norms):.3f}")
