#!/usr/bin/env bash
# scripts/bench/sample.sh [--impl ours_bf16|ours_int8] [--rounds N] [--bin DIR] [CONFIG...]: our sampler beside a plain GPT with
# a static key/value cache on PyTorch's scaled_dot_product_attention, one thread, in turns; image tokens/s and their ratio
# (beside_peer.py). sample_peer.py has compiled forms too.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
PYTHONDONTWRITEBYTECODE=1 exec .venv/bin/python scripts/bench/beside_peer.py sample "$@"
