#!/usr/bin/env bash
# scripts/test.sh [-j N] [CTEST ARGUMENTS...]: set-up, release build, then every test through CTest; its summary comes last.
# For example: scripts/test.sh -j 2, scripts/test.sh -LE slow, scripts/test.sh -R layers
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

jobs=${DALLE_JOBS:-}
arguments=()
while (($# > 0)); do
  case $1 in
    -j) jobs=${2:?-j needs a number} && shift ;;
    -j*) jobs=${1#-j} ;;
    *) arguments+=("$1") ;;
  esac
  shift
done

scripts/build.sh release ${jobs:+-j "$jobs"}
exec ctest --preset release -j "${jobs:-$(nproc)}" "${arguments[@]}"
