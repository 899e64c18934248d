#!/usr/bin/env bash
# scripts/launch.sh N COMMAND [ARGUMENTS...]: COMMAND as N ranks on this machine, each on its own share of the cores or its
# own GPU. When one rank fails the others are ended, and its exit code is this script's. SIGTERM and SIGINT go to every
# rank. The ranks meet on the loopback at MASTER_PORT, or at a port that is free.
set -uo pipefail

usage() {
  echo "usage: scripts/launch.sh N COMMAND [ARGUMENTS...], with N of 1 or more ranks" >&2
  exit 2
}
[[ $# -ge 2 && $1 =~ ^[1-9][0-9]*$ ]] || usage
size=$1
shift
command -v -- "$1" > /dev/null || { echo "launch.sh: cannot run $1" >&2; exit 2; }

port=${MASTER_PORT:-$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')}
grace_seconds=${LAUNCH_GRACE_SECONDS:-30}

# Each rank is a process group of its own, so that Ctrl-C reaches it once, through the trap, and nothing outlives it.
set -m
ranks=()
for ((rank = 0; rank < size; ++rank)); do
  RANK=$rank WORLD_SIZE=$size LOCAL_RANK=$rank LOCAL_WORLD_SIZE=$size MASTER_ADDR=127.0.0.1 MASTER_PORT=$port "$@" &
  ranks+=($!)
done
set +m

signal_all() {
  for pid in "${ranks[@]}"; do kill -s "$1" -- "-$pid" 2> /dev/null; done
}
trap 'signal_all TERM' TERM
trap 'signal_all INT' INT

# The first failure decides. After it the others have some seconds to end by themselves, then they are made to.
first_failure=0
reaper=
take_note() {  # of a rank that ended with this exit code
  (($1 != 0 && first_failure == 0)) || return
  first_failure=$1
  (($1 == 3)) && return  # stopped by a signal after saving, as the others will be
  signal_all TERM
  (sleep "$grace_seconds"; signal_all KILL) &
  reaper=$!
}
while ((${#ranks[@]} > 0)); do
  ended=
  wait -n -p ended "${ranks[@]}" 2> /dev/null
  code=$?
  if [[ -n ${ended:-} ]]; then
    left=()
    for pid in "${ranks[@]}"; do [[ $pid == "$ended" ]] || left+=("$pid"); done
    ranks=("${left[@]}")
    take_note "$code"
  elif ((code == 127)); then  # the shell has taken note of all of them; they are asked for one by one
    for pid in "${ranks[@]}"; do
      wait "$pid" 2> /dev/null
      take_note "$?"
    done
    break
  fi  # else a signal to this script
done
[[ -n $reaper ]] && kill "$reaper" 2> /dev/null
exit "$first_failure"
