#!/usr/bin/env bash
# scripts/build_all.sh [-j N]: builds the combinations that CI's release build leaves out, and prints one line for each:
#   minimal  preset dev, without OpenCV and without tests
#   cuda     preset cuda: own kernels, LibTorch's CUDA libraries, NCCL (needs no GPU to build)
#   asan     preset asan, and its tests but for those labelled slow
# Logs stay in build/logs. The exit code is 1 if any of them failed.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

jobs=${DALLE_JOBS:-$(nproc)}
[[ ${1:-} == -j ]] && jobs=${2:?-j needs a number}
scripts/setup.sh || exit 1
mkdir -p build/logs
failed=0

# combination NAME COMMAND...: runs the command into its log and says how it went.
combination() {
  local name=$1 log=build/logs/$1.log start=$SECONDS
  shift
  if "$@" >"$log" 2>&1; then
    printf '%-8s ok      %4d s  %s\n' "$name" $((SECONDS - start)) "$(grep -E 'tests passed' "$log" | tail -1)"
  else
    printf '%-8s FAILED  %4d s  see %s\n' "$name" $((SECONDS - start)) "$log"
    failed=1
  fi
}

minimal() {
  cmake --preset dev -B build/minimal -DDALLE_WITH_OPENCV=OFF -DDALLE_BUILD_TESTS=OFF && cmake --build build/minimal -j "$jobs"
}
cuda() { cmake --preset cuda && cmake --build --preset cuda -j "$jobs"; }
asan() { cmake --preset asan && cmake --build --preset asan -j "$jobs" && ctest --preset asan -j "$jobs"; }

combination minimal minimal
combination cuda cuda
combination asan asan
exit "$failed"
