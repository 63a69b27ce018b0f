#!/usr/bin/env bash
# Measures a GPU in about eight minutes: parity with flex, tokens/s and memory of training steps next to PyTorch, a
# profile by kernel, and generation.
#
# usage: benches/gpu.sh BACKEND OUT            BACKEND: cuda, rocm, metal, vulkan, or wgpu; OUT: a new folder
#        benches/gpu.sh build FEATURES FILE    builds the program that this script runs, for a machine without Rust:
#                                              benches/gpu.sh build cuda,vulkan,wgpu gpu
#
# GPU      the program; without it, the script builds one with the feature BACKEND
# PYTHON   a Python with torch (python3); without torch, the PyTorch parts are skipped
# LIMIT    seconds for each part (60); a part that fails or takes longer is reported and skipped
# TOTAL    seconds after which no part starts (480); the remaining parts are reported and skipped
# TINY     1: small shapes, to try the script on a software driver
#
# OUT/results.jsonl has one line per part, OUT/table.txt is the summary, and OUT/log.txt has everything else.
set -uo pipefail
cd "$(dirname "$0")/.."

build() {
  cargo build --locked --config profile.dev.package.mixdistill.debug=false --features "$1" --example gpu &&
    cp "${CARGO_TARGET_DIR:-target}/debug/examples/gpu" "$2" && strip "$2"
}

if [ "${1:-}" = build ]; then
  build "$2" "$3"
  exit
fi
if [ $# -ne 2 ]; then
  sed -n '2,13p' "$0" >&2
  exit 2
fi
backend="$1"
out="$2"
mkdir "$out" || exit
gpu="${GPU:-}"
if [ -z "$gpu" ]; then
  gpu="$out/gpu"
  build "$backend" "$gpu" || exit
fi
python="${PYTHON:-python3}"
limit="${LIMIT:-60}"
total="${TOTAL:-480}"
stopwatch=$(command -v timeout || command -v gtimeout) || {
  echo "The command timeout is missing: install GNU coreutils" >&2
  exit 1
}
# limited COMMAND...: runs a command within the time limit of a part, and kills it if it does not stop by itself
limited() { "$stopwatch" -k 5 "$limit" "$@"; }
limited nvidia-smi 2>/dev/null | tee "$out/device.txt"

: >"$out/results.jsonl"
failed=0
# part NAME COMMAND...: runs a command that prints one line of JSON
part() {
  local name="$1" line status
  shift
  echo "== $name (after $SECONDS s)"
  if [ "$SECONDS" -ge "$total" ]; then
    echo "skipped: the total time is used up"
    return
  fi
  line=$(limited "$@" 2>>"$out/log.txt" | tail -n 1)
  status=$?
  # Parity prints its line and fails if a difference exceeds its limit.
  if [ -n "$line" ]; then
    printf '{"part": "%s", "status": %d, "result": %s}\n' "$name" "$status" "$line" >>"$out/results.jsonl"
    printf '%s\n' "$line" | cut -c1-300
  else
    printf '{"part": "%s", "status": %d, "result": null}\n' "$name" "$status" >>"$out/results.jsonl"
  fi
  if [ "$status" -ne 0 ]; then
    echo "failed ($status): see $out/log.txt"
    failed=1
  fi
}

torch_device=cpu
case "$backend" in cuda | rocm) torch_device=cuda ;; esac
has_torch=0
if limited "$python" -c "import torch; assert '$torch_device' == 'cpu' or torch.cuda.is_available()" 2>/dev/null; then
  # On the CPU, PyTorch runs only with tiny shapes.
  if [ "$torch_device" = cuda ] || [ -n "${TINY:-}" ]; then has_torch=1; fi
fi
# pair NAME SHAPE PRECISION FLAGS...: a step in mixdistill and in PyTorch, eager and compiled
pair() {
  local name="$1" shape="$2" precision="$3" bf16=()
  shift 3
  if [ "$precision" = bf16 ]; then bf16=(--bf16); fi
  # shellcheck disable=SC2086
  part "$name, $precision" "$gpu" step --backend "$backend" --shape $shape --precision "$precision" "${steps[@]}" "$@"
  if [ "$has_torch" = 1 ]; then
    for compiled in "${modes[@]}"; do
      # shellcheck disable=SC2086
      part "$name, $precision, PyTorch ${compiled#--}" "$python" benches/peers/shape_step.py --device "$torch_device" \
        --shape $shape ${bf16[@]+"${bf16[@]}"} $compiled "${steps[@]}" ${peer[@]+"${peer[@]}"}
    done
  fi
}

small="576 30 9 3 1536 49152 2048 8"
large="1536 28 12 2 8960 151936 2048 2"
long="576 30 9 3 1536 49152 8192 1"
steps=(--steps 10 --warm-up 3)
precisions=(bf16 f32)
# PyTorch, eager and compiled.
modes=("" --compile)
generation=(--batch 16)
if [ -n "${TINY:-}" ]; then
  small="32 2 4 2 48 67 24 2"
  large="$small"
  long="32 1 4 2 48 67 40 1"
  steps=(--steps 1 --warm-up 1)
  # Software drivers have no bf16, and torch.compile would take longer than everything else.
  precisions=(f32)
  modes=("")
  generation=(--shape 32 2 4 2 48 67 --batch 2 --prompt 5 --new 4)
fi
# CUDA and ROCm may multiply f32 matrices in TF32.
tolerance=(--tolerance 2e-6)
if [ "$torch_device" = cuda ]; then tolerance=(--tolerance 4e-4); fi

part "parity" "$gpu" parity --backend "$backend" "${tolerance[@]}"
peer=()
for precision in "${precisions[@]}"; do pair "135M, 2,048 tokens" "$small" "$precision"; done
peer=(--lora-rank 8)
pair "135M, adapters" "$small" "${precisions[0]}" --lora-rank 8
[ "$large" = "$small" ] || pair "1.5B, adapters" "$large" "${precisions[0]}" --lora-rank 8 --base-type "$([ "${precisions[0]}" = bf16 ] && echo bf16 || echo f32)"
# shellcheck disable=SC2086
part "profile" "$gpu" step --backend "$backend" --shape $small --precision "${precisions[0]}" --profile
peer=()
for other in vulkan wgpu; do
  if [ "$other" != "$backend" ] && limited "$gpu" step --backend "$other" --shape 8 1 1 1 8 11 4 1 --steps 1 >/dev/null 2>&1; then
    part "$other, parity" "$gpu" parity --backend "$other"
    # shellcheck disable=SC2086
    part "$other, 135M, f32" "$gpu" step --backend "$other" --shape $small "${steps[@]}"
  fi
done
# shellcheck disable=SC2086
part "8,192 tokens" "$gpu" step --backend "$backend" --shape $long --precision "${precisions[0]}" "${steps[@]}" --recompute
part "generation" "$gpu" generate --backend "$backend" "${generation[@]}"

"$python" - "$out/results.jsonl" <<'PYTHON' | tee "$out/table.txt"
import json, sys
for line in open(sys.argv[1]):
    one = json.loads(line)
    result, what = one["result"] or {}, one["part"]
    if one["result"] is None:
        print(f"{what:<44} failed ({one['status']})")
    elif "parity" in result:
        bad = [p["what"] for p in result["parity"] if not p["passed"]]
        print(f"{what:<44} {'passed' if result['passed'] else 'OFF: ' + ', '.join(bad)}")
    elif "kernels_ms" in result:
        print(f"{what:<44} {result['kernels_ms']} ms in kernels")
        for k in result["kernels"][:12]:
            print(f"    {k['kernel']:<40} {k['launches']:>6} {k['ms']:>10.3f} ms")
    else:
        memory = result.get("peak_device_mib")
        print(f"{what:<44} {result['tokens_per_s']:>10.0f} tokens/s {memory or 0:>8} MiB")
PYTHON
[ "${PIPESTATUS[0]}" -eq 0 ] || failed=1
echo "done after $SECONDS s"
exit "$failed"
