#!/usr/bin/env bash
# scripts/bench/stage1.sh [--rounds N] [--bin DIR] [CONFIG...]: our dVAE training step beside OpenAI's code in PyTorch, one
# thread, in turns (N = 5 times ours, theirs; each timed over several steps), and the ratio of the medians, for the named
# configs of dalle-bench (default: all but the largest). Needs PyPI once, for the dall-e package (into build/bench-packages).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

rounds=5 bin=build/release/bin configs=()
while [[ $# -gt 0 ]]; do
  case $1 in
    --rounds) rounds=$2; shift ;;
    --bin) bin=$2; shift ;;
    -*) echo "usage: scripts/bench/stage1.sh [--rounds N] [--bin DIR] [CONFIG...]" >&2; exit 2 ;;
    *) configs+=("$1") ;;
  esac
  shift
done
[[ ${#configs[@]} -gt 0 ]] || configs=(openai_nhid64_64px_b16 openai_nhid256_128px_b2 openai_nhid32_64px_b32
  openai_nhid128_64px_b8 openai_nhid64_128px_b4)

python=.venv/bin/python packages=build/bench-packages
if [[ ! -d $packages/dall_e ]]; then
  "$python" -m pip install --quiet --target "$packages" --no-deps dall-e==0.1 attrs==25.3.0 requests urllib3 idna certifi numpy \
    charset-normalizer
fi
export PYTHONPATH=$packages PYTHONDONTWRITEBYTECODE=1 OMP_NUM_THREADS=1

median() { "$python" -c 'import statistics,sys; print(f"{statistics.median(map(float, sys.argv[1:])):.4g}")' "$@"; }
speed() { "$python" -c 'import json,sys; print(json.loads(sys.stdin.readlines()[-1])["median"])'; }
ours() { "$bin/dalle-bench" dvae-train --config "$1" --precision bf16 --threads 1 --rounds 5 --device cpu 2>/dev/null | speed; }
theirs() { "$python" scripts/bench/dvae_peer.py --config "$1" --forms bf16_nhwc --threads 1 --rounds 5 2>/dev/null | speed; }

printf '%-26s %12s %12s %8s   (images/s, medians of %d turns; ratio within each turn)\n' config ours openai ratio "$rounds"
for config in "${configs[@]}"; do
  a=() b=() ratios=()
  for ((turn = 0; turn < rounds; ++turn)); do
    if ((turn % 2 == 0)); then a+=("$(ours "$config")") b+=("$(theirs "$config")")
    else b+=("$(theirs "$config")") a+=("$(ours "$config")"); fi
    ratios+=("$("$python" -c 'import sys; print(float(sys.argv[1]) / float(sys.argv[2]))' "${a[-1]}" "${b[-1]}")")
  done
  printf '%-26s %12s %12s %8s\n' "$config" "$(median "${a[@]}")" "$(median "${b[@]}")" "$(median "${ratios[@]}")"
done
