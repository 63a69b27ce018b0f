#!/bin/bash
# A study on several hosts that share nothing, with ssh alone: each makes its part, and this machine makes the
# report. A host that is named twice makes two parts.
#
#   examples/cluster/ssh.sh study.toml alpha beta gamma
#
# Each host has the program (MIXDISTILL names it, if it is not in PATH), and the data and models that the settings
# name: relative paths begin in DIRECTORY there, which is the home directory without it, and in the current
# directory here. ssh must get in without a password (keys).
#
# A host that failed or was stopped goes on where it was: call it again. What is done is skipped. Ctrl+C asks all
# hosts to stop, which write checkpoints first.
#
# Students that are pretrained are trained for each part. With a `pretrained_cache` in the settings, parts of one
# host train them once; for the report, copy that folder from a host to the same path here. Hosts that are not
# alike may come to different models: then pretrain on one of them, and copy the folder to all before the rest.
set -euo pipefail

if [ $# -lt 2 ]; then
    echo "usage: ssh.sh STUDY.toml HOST..." >&2
    exit 2
fi
config=$1
shift
hosts=("$@")
program=${MIXDISTILL:-mixdistill}
# Where relative paths begin on the hosts, and the folder of their parts there.
directory=${DIRECTORY:-.}
remote=${REMOTE:-study-parts}
# Where parts and report are here.
parts=${PARTS:-study-parts}
report=${REPORT:-study}

# Runs a command on host $1, in the directory there, with the other arguments as they are.
on_host() {
    local host=$1 command
    shift
    command="cd $(printf %q "$directory") && $(printf '%q ' "$@")"
    ssh -o BatchMode=yes -o ServerAliveInterval=30 -o ServerAliveCountMax=4 "$host" "$command"
}

# Makes part $1 of $2 on host $3, and brings back what is done without models and answers.
make_part() {
    local folder="$remote/$1-of-$2"
    on_host "$3" sh -c 'mkdir -p "$1" && cat > "$1/study.toml"' sh "$folder" < "$config"
    # While it works, the host knows the number of its process.
    local work='folder=$1; shift; "$@" & echo $! > "$folder/process"; wait $!; status=$?; '
    work+='rm -f "$folder/process"; exit $status'
    on_host "$3" sh -c "$work" sh "$folder" "$program" \
        study --config "$folder/study.toml" --part "$1/$2" --out "$folder/part" < /dev/null
    mkdir -p "$parts/part-$1"
    on_host "$3" tar -C "$folder/part" -cf - \
        --exclude=./cells --exclude=./untuned --exclude=./scores . \
        < /dev/null | tar -xf - -C "$parts/part-$1"
}

# Asks every host that is still at work to stop, and waits for its checkpoint.
stop() {
    trap '' INT TERM
    echo "stopping all parts" >&2
    for index in "${!jobs[@]}"; do
        if kill -0 "${jobs[$index]}" 2> /dev/null; then
            on_host "${hosts[$index]}" sh -c '[ ! -f "$1/process" ] || kill -TERM "$(cat "$1/process")"' \
                sh "$remote/$((index + 1))-of-${#hosts[@]}" < /dev/null || true
        fi
    done
    wait
    exit 130
}

mkdir -p "$parts"
jobs=()
trap stop INT TERM
for index in "${!hosts[@]}"; do
    number=$((index + 1))
    make_part "$number" "${#hosts[@]}" "${hosts[$index]}" > "$parts/part-$number.log" 2>&1 &
    jobs+=("$!")
done
failed=0
for index in "${!jobs[@]}"; do
    if ! wait "${jobs[$index]}"; then
        echo "part $((index + 1)) failed: see $parts/part-$((index + 1)).log" >&2
        failed=1
    fi
done
trap - INT TERM
[ "$failed" -eq 0 ] || exit 1

folders=()
for index in "${!jobs[@]}"; do
    folders+=("$parts/part-$((index + 1))")
done
"$program" study --config "$config" --report "${folders[@]}" --out "$report"
