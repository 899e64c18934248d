#!/usr/bin/env bash
# scripts/check_gpu_code.sh [FOLDER]: compiles what only builds with CUDA and NCCL have, our kernels and the NCCL backend, and
# nothing else: a whole build with the preset cuda takes ten times as long. Needs nvcc (scripts/setup.sh), no GPU.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
folder=${1:-build/gpu-code}

log=$(mktemp)
trap 'rm -f "$log"' EXIT
if ! cmake --preset cuda -B "$folder" -Wno-dev -DCMAKE_UNITY_BUILD=OFF -DDALLE_BUILD_TESTS=OFF > "$log" 2>&1; then
  cat "$log"
  exit 1
fi
# Object files, where the build has them.
objects=()
for file in src/*/*.cu src/*/nccl_backend.cpp src/core/cuda_graph.cpp; do
  layer=$(basename "$(dirname "$file")")
  objects+=("src/CMakeFiles/dalle_$layer.dir/$layer/$(basename "$file").o")
done
cmake --build "$folder" --target "${objects[@]}"
printf 'compiled: %s\n' "${objects[@]##*/}"
