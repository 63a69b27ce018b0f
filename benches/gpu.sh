#!/usr/bin/env bash
# Everything that is to be known of a GPU, in one call: gradients against flex, then tokens/s and
# memory beside PyTorch, in f32 and bf16.
#
# usage: benches/gpu.sh BACKEND OUT [BATCH]     BACKEND: cuda, wgpu or vulkan; OUT: a new folder
#
# Runs what is built already, if BIN names a folder with the programs `backends`, `ops` (tests) and
# `bench_step`, as for a machine without Rust; else it builds them. `benches/gpu.sh build BACKEND
# FOLDER` makes that folder. FEATURES: what to build with, if more than BACKEND, as `cuda,fusion`. PYTHON: one with torch (default python3; without torch its side is left
# out). TORCH: the script torch_train_step.py.
# Of memory, ours is what the pool holds at the end, PyTorch's the most that was allocated.
set -euo pipefail
cd "$(dirname "$0")/.."

build() {
  local backend="${FEATURES:-$1}" folder="$2" target="${CARGO_TARGET_DIR:-target}"
  mkdir -p "$folder"
  cargo build --features "$backend" --example bench_step
  cp "$target/debug/examples/bench_step" "$folder/"
  cargo test --features "$backend" --test ops --test backends --no-run --message-format json |
    python3 -c '
import json, shutil, sys
for line in sys.stdin:
    message = json.loads(line)
    if message.get("executable") and message["profile"]["test"]:
        shutil.copy(message["executable"], sys.argv[1] + "/" + message["target"]["name"])
' "$folder"
  strip "$folder"/*
}

if [ "${1:-}" = build ]; then
  build "$2" "$3"
  exit
fi
backend="$1"
out="$2"
batch="${3:-8}"
mkdir "$out"
bin="${BIN:-}"
if [ -z "$bin" ]; then
  bin="$out/bin"
  build "$backend" "$bin"
fi
python="${PYTHON:-python3}"
torch="${TORCH:-../shared/bench/torch_train_step.py}"
nvidia-smi 2>/dev/null | tee "$out/device.txt" || true

failed=0
for program in ops backends; do
  echo "== $program against flex on $backend"
  if ! "$bin/$program" --nocapture --test-threads 1 >"$out/$program.txt" 2>&1; then
    echo "FAILED: $program"
    failed=1
  fi
  grep -E "^test |result|panicked| off by" "$out/$program.txt" || true
done

device=cpu
if [ "$backend" = cuda ]; then device=cuda; fi
for length in 1024 2048; do
  shape=(--shape 576 30 9 3 1536 49152 "$length" "$batch")
  for precision in f32 bf16; do
    bf16=()
    if [ "$precision" = bf16 ]; then bf16=(--bf16); fi
    for round in 1 2; do
      echo "== T $length, $precision, round $round"
      "$bin/bench_step" --backend "$backend" "${shape[@]}" --steps 10 --precision "$precision" \
        2>>"$out/log.txt" | tee -a "$out/steps.jsonl" || echo "failed: see $out/log.txt"
      if [ "$device" = cuda ] && "$python" -c 'import torch; assert torch.cuda.is_available()' 2>/dev/null; then
        for compiled in "" --compile; do
          # shellcheck disable=SC2086
          "$python" "$torch" "${shape[@]}" --steps 10 --device cuda "${bf16[@]}" $compiled \
            2>>"$out/log.txt" | tee -a "$out/steps.jsonl" || echo "failed: see $out/log.txt"
        done
      fi
    done
  done
done
if command -v nsys >/dev/null; then
  nsys profile --stats=true -o "$out/profile" "$bin/bench_step" --backend "$backend" \
    --shape 576 30 9 3 1536 49152 1024 "$batch" --steps 3 2>&1 | tee "$out/profile.txt" | tail -40
fi
exit "$failed"
