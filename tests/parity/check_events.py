"""Checks that TensorBoard reads the event files that mixdistill wrote, with every value of metrics.jsonl.

usage: check_events.py FOLDER      (the folder that MIXDISTILL_EVENTS_OUT names)
"""

import json
import sys
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

folder = Path(sys.argv[1])
board = EventAccumulator(str(folder))
board.Reload()
losses = {event.step: event.value for event in board.Scalars("train/loss")}
held_out = {event.step: event.value for event in board.Scalars("held_out_loss/long")}
metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
steps = [metric for metric in metrics if metric["event"] == "step"]
evaluations = [metric for metric in metrics if metric["event"] == "evaluation"]
assert len(losses) == len(steps) > 0 and len(held_out) == len(evaluations) > 0
for metric in steps:
    assert abs(losses[metric["step"]] - metric["loss"]) < 1e-6 * metric["loss"], metric
for metric in evaluations:
    loss = metric["sources"][0]["loss"]
    assert abs(held_out[metric["step"]] - loss) < 1e-6 * loss, metric
print(f"TensorBoard reads {len(board.Tags()['scalars'])} scalars from {len(steps)} steps")
