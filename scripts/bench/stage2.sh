#!/usr/bin/env bash
# scripts/bench/stage2.sh [--rounds N] [--bin DIR] [--peer NAME] [CONFIG...]: our prior's training step beside a plain GPT on
# PyTorch's scaled_dot_product_attention and beside DALLE-pytorch's model in the paper's order, each eager and compiled, one
# thread, in turns; speeds in tokens/s and their ratios (beside_peer.py).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
source scripts/bench/dalle_pytorch_package.sh
exec .venv/bin/python scripts/bench/beside_peer.py prior-train "$@"
