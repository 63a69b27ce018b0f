#!/usr/bin/env python3
"""The PyTorch counterpart of `bench_step --shape`: times one optimizer step of a Llama of any shape with random weights,
whole or with low-rank adapters on all linear layers, and prints one line of JSON.

usage: shape_step.py --shape D LAYERS HEADS KV_HEADS FF VOCAB SEQ BATCH [--lora-rank R] [--bf16] [--compile]
                     [--device cpu|cuda] [--steps N] [--warm-up N]
needs: torch

Parameters, gradients, and AdamW are in f32, as in mixdistill. With --bf16, matrix products are in bf16 (autocast), and
with adapters the frozen weights are bf16, too.
"""
import argparse, json, statistics, time
import torch, torch.nn as nn, torch.nn.functional as F

ap = argparse.ArgumentParser()
ap.add_argument("--shape", type=int, nargs=8, required=True)
ap.add_argument("--lora-rank", type=int)
ap.add_argument("--bf16", action="store_true")
ap.add_argument("--compile", action="store_true")
ap.add_argument("--device", default="cuda")
ap.add_argument("--steps", type=int, default=10)
ap.add_argument("--warm-up", type=int, default=3)
a = ap.parse_args()
width, layers, heads, kv_heads, inner, vocabulary, seq, batch = a.shape
dim = width // heads
device = torch.device(a.device)
torch.manual_seed(0)
torch.set_float32_matmul_precision("high")


class Linear(nn.Module):
    """A linear layer. With adapters, it is frozen and only the adapters are trained."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.base = nn.Linear(inputs, outputs, bias=False)
        self.rank = a.lora_rank
        if self.rank:
            self.base.weight.requires_grad_(False)
            self.a = nn.Linear(inputs, self.rank, bias=False)
            self.b = nn.Linear(self.rank, outputs, bias=False)
            nn.init.zeros_(self.b.weight)

    def forward(self, x):
        y = self.base(x)
        return y + 2.0 * self.b(self.a(x)) if self.rank else y


class Norm(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width), requires_grad=not a.lora_rank)

    def forward(self, x):
        return F.rms_norm(x, (width,), self.weight.to(x.dtype), 1e-6)


def rotated(x, cos, sin):
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.o = Linear(width, heads * dim), Linear(heads * dim, width)
        self.k, self.v = Linear(width, kv_heads * dim), Linear(width, kv_heads * dim)
        self.gate, self.up, self.down = Linear(width, inner), Linear(width, inner), Linear(inner, width)
        self.norm_1, self.norm_2 = Norm(), Norm()

    def forward(self, x, cos, sin):
        h = self.norm_1(x)
        split = lambda y, n: y.view(batch, seq, n, dim).transpose(1, 2)
        q, k, v = split(self.q(h), heads), split(self.k(h), kv_heads), split(self.v(h), kv_heads)
        q, k = rotated(q, cos.to(q.dtype), sin.to(q.dtype)), rotated(k, cos.to(k.dtype), sin.to(k.dtype))
        y = F.scaled_dot_product_attention(q, k, v.to(q.dtype), is_causal=True, enable_gqa=True)
        x = x + self.o(y.transpose(1, 2).reshape(batch, seq, width))
        h = self.norm_2(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        frozen = bool(a.lora_rank)
        self.embedding = nn.Embedding(vocabulary, width)
        self.layers = nn.ModuleList(Layer() for _ in range(layers))
        self.norm, self.head = Norm(), nn.Linear(width, vocabulary, bias=False)
        self.embedding.weight.requires_grad_(not frozen)
        self.head.weight.requires_grad_(not frozen)
        angles = torch.outer(torch.arange(seq), 10000.0 ** (-torch.arange(0, dim, 2) / dim)).repeat(1, 2)
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def forward(self, ids, targets):
        x = self.embedding(ids)
        for layer in self.layers:
            x = layer(x, self.cos, self.sin)
        return F.cross_entropy(self.head(self.norm(x)).float().reshape(-1, vocabulary), targets.reshape(-1))


model = Model().to(device)
if a.lora_rank and a.bf16:
    for parameter in model.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.bfloat16()
parameters = sum(p.numel() for p in model.parameters())
trained = [p for p in model.parameters() if p.requires_grad]
optimizer = torch.optim.AdamW(trained, 1e-3, fused=device.type == "cuda")
step_model = torch.compile(model) if a.compile else model
times = []
for i in range(a.steps + a.warm_up):
    ids = torch.randint(0, vocabulary, (batch, seq + 1), device=device)
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    with torch.autocast(device.type, torch.bfloat16, enabled=a.bf16):
        loss = step_model(ids[:, :-1], ids[:, 1:])
    loss.backward()
    torch.nn.utils.clip_grad_norm_(trained, 1.0)
    optimizer.step()
    optimizer.zero_grad()
    last = loss.item()
    if i >= a.warm_up:
        times.append(time.perf_counter() - start)
step = statistics.median(times)
print(json.dumps({
    "who": f"torch {torch.__version__}" + (" compiled" if a.compile else " eager"),
    "params": parameters, "step_s": round(step, 4), "tokens_per_s": round(batch * seq / step, 1),
    "loss": round(last, 4),
    "peak_device_mib": torch.cuda.max_memory_allocated() >> 20 if device.type == "cuda" else None,
}))
