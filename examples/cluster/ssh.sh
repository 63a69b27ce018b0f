#!/bin/bash
# A study on several hosts that share nothing, with ssh alone: each makes its part, and this machine makes the
# report. A host that is named twice makes two parts.
#
#   examples/cluster/ssh.sh study.toml alpha beta gamma
#
# Each host has the program (MIXDISTILL names it, if it is not in PATH), and what the settings name under the
# same paths. A host that failed or was stopped goes on where it was: call it again. What is done is skipped.
set -euo pipefail

if [ $# -lt 2 ]; then
    echo "usage: ssh.sh STUDY.toml HOST..." >&2
    exit 2
fi
config=$1
shift
program=${MIXDISTILL:-mixdistill}
# The folder of a part on its host, in the home directory there; and where parts and report are here.
remote=${REMOTE:-study-parts}
parts=${PARTS:-study-parts}
report=${REPORT:-study}

# Makes part $1 of $2 on host $3, and brings back what is done without models and answers.
make_part() {
    local folder="$remote/$1-of-$2"
    ssh "$3" "mkdir -p '$folder' && cat > '$folder/study.toml'" < "$config"
    ssh "$3" "cd '$folder' && '$program' study --config study.toml --part $1/$2 --out part" < /dev/null
    mkdir -p "$parts/part-$1"
    ssh "$3" "cd '$folder/part' && tar -cf - --exclude=./cells --exclude=./untuned --exclude=./scores ." \
        < /dev/null | tar -xf - -C "$parts/part-$1"
}

mkdir -p "$parts"
number=0
jobs=()
for host in "$@"; do
    number=$((number + 1))
    make_part "$number" "$#" "$host" > "$parts/part-$number.log" 2>&1 &
    jobs+=("$!")
done
failed=0
for index in "${!jobs[@]}"; do
    if ! wait "${jobs[$index]}"; then
        echo "part $((index + 1)) failed: see $parts/part-$((index + 1)).log" >&2
        failed=1
    fi
done
[ "$failed" -eq 0 ] || exit 1

folders=()
for index in "${!jobs[@]}"; do
    folders+=("$parts/part-$((index + 1))")
done
"$program" study --config "$config" --report "${folders[@]}" --out "$report"
