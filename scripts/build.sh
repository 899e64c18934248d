#!/usr/bin/env bash
# scripts/build.sh [PRESET] [-j N]: set-up, then configure and build PRESET (release) into build/PRESET.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

preset=release
jobs=${DALLE_JOBS:-}
while (($# > 0)); do
  case $1 in
    -j) jobs=${2:?-j needs a number} && shift ;;
    -j*) jobs=${1#-j} ;;
    -*) echo "usage: scripts/build.sh [PRESET] [-j N]" >&2 && exit 2 ;;
    *) preset=$1 ;;
  esac
  shift
done

scripts/setup.sh
if [[ -z $jobs ]]; then
  # A compiler process of ours stays under 4 GB; more of them than fit into memory would only swap.
  jobs=$(($(awk '/MemTotal/ { print $2 }' /proc/meminfo) / 1024 / 1024 / 4))
  jobs=$((jobs < 1 ? 1 : jobs > $(nproc) ? $(nproc) : jobs))
fi
cmake --preset "$preset" -Wno-dev --log-level=NOTICE >/dev/null
cmake --build --preset "$preset" -j "$jobs"
