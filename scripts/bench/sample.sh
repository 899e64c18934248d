#!/usr/bin/env bash
# scripts/bench/sample.sh [--impl ours_bf16|ours_int8] [--rounds N] [--bin DIR] [--peer NAME] [CONFIG...]: our sampler beside a
# plain GPT with a static key/value cache on PyTorch's scaled_dot_product_attention and beside DALLE-pytorch with its cache, one
# thread, in turns, each peer in the fastest of its settings; image tokens/s and their ratios (beside_peer.py).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
source scripts/bench/dalle_pytorch_package.sh
exec .venv/bin/python scripts/bench/beside_peer.py sample "$@"
