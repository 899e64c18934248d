#!/usr/bin/env bash
# scripts/bench/stage2.sh [--rounds N] [--bin DIR] [CONFIG...]: our prior's training step beside a plain GPT on PyTorch's
# scaled_dot_product_attention and beside DALLE-pytorch's model in the paper's order, each in its fastest form, one thread,
# in turns; speeds in tokens/s and their ratios (beside_peer.py). Needs PyPI once, for dalle-pytorch (into
# build/bench-packages).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

packages=build/bench-packages
if [[ ! -d $packages/dalle_pytorch ]]; then
  .venv/bin/python -m pip install --quiet --target "$packages" --no-deps dalle-pytorch==1.6.6 einops==0.8.1 \
    axial-positional-embedding==0.3.12 rotary-embedding-torch==0.9.1 numpy==2.2.6
fi
PYTHONPATH=$packages PYTHONDONTWRITEBYTECODE=1 exec .venv/bin/python scripts/bench/beside_peer.py prior-train "$@"
