"""Recomputes in PyTorch the scores that mixdistill wrote.

    python check_scores.py DIR STUDENT

`cargo test --test score` writes DIR/scores.json if MIXDISTILL_PARITY_OUT names DIR. STUDENT is the folder of
SmolLM2-135M-Instruct. For each answer, with transformers in f32, the script checks:

  tokens    the scored tokens are those that the published code of the Rank-Surprisal Ratio takes: from after the
            assistant's header to before the end of the turn
  NLL       of each token, within 1e-4
  rank      of each token, equal unless another logit is within 1e-4 of the token's logit
  scores    mean NLL, perplexity, mean rank, RSR, and share above 100 by the formulas of that code, from PyTorch's NLLs
            and ranks; LALP with one row per step, which has the problem, the step's window, and the step

The exit status is 1 if an answer failed or there was none.
"""

import json
import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

NLL = 1e-4
TIE = 1e-4
# For a mean over some hundred numbers, or a ratio of sums.
RELATIVE = 1e-4
CLIP = 100
EPSILON = 1e-12


def response_positions(ids, header, end):
    """Positions of the last answer: from after the header to the end of the turn or of the row."""
    starts = [i + len(header) for i in range(len(ids)) if ids[i : i + len(header)] == header]
    start = starts[-1]
    stops = [i for i in range(start, len(ids)) if ids[i : i + len(end)] == end]
    return range(start, stops[0] if stops else len(ids))


def logits_before(model, ids, places):
    """The logits that predict the tokens at these positions, in f32."""
    logits = model(torch.tensor([ids])).logits[0].float()
    return logits[[place - 1 for place in places]]


def nlls_of(logits, targets):
    exact = logits.double()
    own = exact.gather(1, targets[:, None])[:, 0]
    return torch.logsumexp(exact, dim=-1) - own


def check(case, model, header, end):
    ids, (start, stop) = case["tokens"], case["scored"]
    places = response_positions(ids, header, end)
    problems = []
    if places != range(start, stop):
        return [f"tokens {start} to {stop} are scored, not {places}"], 0.0, 0
    targets = torch.tensor([ids[place] for place in places])
    logits = logits_before(model, ids, places)
    nlls = nlls_of(logits, targets)
    own = logits.gather(1, targets[:, None])
    ranks = 1 + (logits > own).sum(dim=-1)
    ours, our_ranks = torch.tensor(case["nlls"], dtype=torch.float64), torch.tensor(case["ranks"])
    worst = (ours - nlls).abs().max().item()
    if len(ours) != len(nlls) or not worst <= NLL:
        problems.append(f"an NLL differs by {worst:.2e}")
    least = 1 + (logits > own + TIE).sum(dim=-1)
    # The count includes the token itself.
    most = (logits > own - TIE).sum(dim=-1)
    outside = ((our_ranks < least) | (our_ranks > most)).sum().item()
    if outside:
        problems.append(f"{outside} ranks differ although no other logit is within {TIE}")
    different = (our_ranks != ranks).sum().item()

    clipped = torch.clamp(ranks, max=CLIP).double()
    scores = case["scores"]
    expected = {
        "tokens": float(len(places)),
        "nll": nlls.mean().item(),
        "perplexity": nlls.mean().exp().item(),
        "rank": clipped.mean().item(),
        "rsr": (clipped.sum() / max(nlls.sum().item(), EPSILON)).item(),
        "above_100": (ranks > CLIP).double().mean().item(),
        "lalp": lalp(case, model),
        "steps": float(len(case["steps"])),
    }
    # Each rank that differs because of a tie widens the tolerance.
    free = different / len(places)
    for name, value in expected.items():
        allowed = RELATIVE * max(abs(value), 1.0)
        if name in ("rank", "rsr", "above_100"):
            allowed += free * max(value, 1.0)
        if not abs(scores[name] - value) <= allowed:
            problems.append(f"{name} is {scores[name]}, not {value}")
    return problems, worst, different


def lalp(case, model):
    """LALP, with each step read alone after the problem and the steps in its window."""
    ids, start = case["tokens"], case["scored"][0]
    steps, means = case["steps"], []
    for number, (first, last) in enumerate(steps):
        window = steps[max(0, number - case["window"])][0]
        read = ids[:start] + ids[start + window : start + last]
        places = range(len(read) - (last - first), len(read))
        targets = torch.tensor([read[place] for place in places])
        means.append(-nlls_of(logits_before(model, read, places), targets).mean().item())
    return sum(means) / len(means)


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    root, student = map(Path, sys.argv[1:])
    torch.set_grad_enabled(False)
    tokenizer = AutoTokenizer.from_pretrained(student)
    model = AutoModelForCausalLM.from_pretrained(
        student, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    header = tokenizer("<|im_start|>assistant\n", add_special_tokens=False)["input_ids"]
    end = tokenizer("<|im_end|>", add_special_tokens=False)["input_ids"]
    cases = json.loads((root / "scores.json").read_text(encoding="utf-8"))["cases"]
    failed, tokens = 0, 0
    for case in cases:
        problems, worst, different = check(case, model, header, end)
        scores, count = case["scores"], len(case["nlls"])
        tokens += count
        failed += bool(problems)
        print(
            f"{scores['label']}: {count} tokens, largest difference of an NLL {worst:.1e}, "
            f"{different} ranks of equal logits, RSR {scores['rsr']:.4f}, LALP {scores['lalp']:.4f} "
            f"over {scores['steps']} steps: {'FAILED: ' + '; '.join(problems) if problems else 'ok'}",
            flush=True,
        )
    print(f"{len(cases)} answers, {tokens} tokens, {failed} failed")
    sys.exit(not cases or failed > 0)


if __name__ == "__main__":
    main()
