#!/bin/bash
# Runs a study on several hosts over ssh, without shared storage. Each host computes one part, and the local
# machine writes the report. A host that you list twice computes two parts.
#
#   examples/cluster/ssh.sh study.toml alpha beta gamma
#
# Every host needs the program (set MIXDISTILL if it is not in PATH) and the data and models that the settings
# name. Relative paths start in DIRECTORY on the hosts (default: the home directory), and in the current
# directory on the local machine. ssh must log in with a key, without a password.
#
# To resume after a failure or a stop, run the same command again. Finished work is skipped. Ctrl+C stops all
# hosts after they have written checkpoints.
#
# Pretrained students are pretrained for each part. With `pretrained_cache` in the settings, the parts of one
# host share them. For the report, copy that folder from a host to the same path on the local machine. Hosts
# with different hardware may produce different models: pretrain on one host, then copy the folder to all hosts
# before you start.
set -euo pipefail

if [ $# -lt 2 ]; then
    echo "usage: ssh.sh STUDY.toml HOST..." >&2
    exit 2
fi
config=$1
shift
hosts=("$@")
program=${MIXDISTILL:-mixdistill}
# On the hosts: where relative paths start, and the folder of the parts.
directory=${DIRECTORY:-.}
remote=${REMOTE:-study-parts}
# On the local machine: the folder of the parts, and the report.
parts=${PARTS:-study-parts}
report=${REPORT:-study}

# Runs a command in the directory on host $1. The other arguments are passed unchanged.
on_host() {
    local host=$1 command
    shift
    command="cd $(printf %q "$directory") && $(printf '%q ' "$@")"
    ssh -o BatchMode=yes -o ServerAliveInterval=30 -o ServerAliveCountMax=4 "$host" "$command"
}

# Computes part $1 of $2 on host $3 and copies the results back, without models and answers.
make_part() {
    local folder="$remote/$1-of-$2"
    on_host "$3" sh -c 'mkdir -p "$1" && cat > "$1/study.toml"' sh "$folder" < "$config"
    # While the part runs, the host stores its process ID.
    local work='folder=$1; shift; "$@" & echo $! > "$folder/process"; wait $!; status=$?; '
    work+='rm -f "$folder/process"; exit $status'
    on_host "$3" sh -c "$work" sh "$folder" "$program" \
        study --config "$folder/study.toml" --part "$1/$2" --out "$folder/part" < /dev/null
    mkdir -p "$parts/part-$1"
    on_host "$3" tar -C "$folder/part" -cf - \
        --exclude=./cells --exclude=./untuned --exclude=./scores . \
        < /dev/null | tar -xf - -C "$parts/part-$1"
}

# Stops every host that is still running, and waits for its checkpoint.
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
