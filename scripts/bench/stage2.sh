#!/usr/bin/env bash
# scripts/bench/stage2.sh [--rounds N] [--bin DIR] [CONFIG...]: our prior's training step beside a plain GPT on PyTorch's
# scaled_dot_product_attention (bf16 autocast), one thread, in turns; speeds in tokens/s and their ratio (beside_peer.py).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
PYTHONDONTWRITEBYTECODE=1 exec .venv/bin/python scripts/bench/beside_peer.py prior-train "$@"
