#!/usr/bin/env bash
# Times a training step over one row of several lengths, with full attention, with linear attention of the same width,
# and with Qwen3.5's hybrid of both. Prints seconds and peak memory as a table; each figure is from its own process.
#
#   benches/lengths.sh                       256 to 16,384 tokens
#   benches/lengths.sh 512 2048              these lengths
#   BACKEND=wgpu benches/lengths.sh          another backend
#   WIDTH=1024 HEADS=8 benches/lengths.sh    another shape; LAYERS and STEPS (timed steps) work the same way
set -euo pipefail
cd "$(dirname "$0")/.."
lengths=("$@")
[ $# -gt 0 ] || lengths=(256 512 1024 2048 4096 8192 16384)
width="${WIDTH:-512}" layers="${LAYERS:-4}" heads="${HEADS:-4}" backend="${BACKEND:-auto}"
features=()
[ "$backend" = auto ] || features=(--features "$backend")
[ -n "${BENCH_STEP:-}" ] || cargo build -q ${features[@]+"${features[@]}"} --example bench_step
program="${BENCH_STEP:-${CARGO_TARGET_DIR:-target}/debug/examples/bench_step}"

messages=$(mktemp)
trap 'rm -f "$messages"' EXIT

# number KEY LINE: a number from the line of JSON that a run prints
number() { sed -n "s/.*\"$1\":\([0-9.]*\).*/\1/p" <<<"$2"; }

echo "| tokens | full, s | linear, s | hybrid, s | full, MiB | linear, MiB | hybrid, MiB |"
echo "| --- | --- | --- | --- | --- | --- | --- |"
for length in "${lengths[@]}"; do
  seconds='' memory=''
  for mixer in full linear hybrid; do
    line=$("$program" --backend "$backend" --mixer "$mixer" --warm-up 1 --steps "${STEPS:-3}" \
      --shape "$width" "$layers" "$heads" "$heads" $((width * 11 / 4)) 4096 "$length" 1 2>"$messages") || { cat "$messages" >&2 && exit 1; }
    seconds+=" $(number step_s "$line") |" memory+=" $(number peak_rss_mib "$line") |"
  done
  echo "| $length |$seconds$memory"
done
