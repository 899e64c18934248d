#!/usr/bin/env bash
# scripts/bench/stage1.sh [--rounds N] [--bin DIR] [--relaxation-precision f32] [CONFIG...]: our dVAE training step beside
# OpenAI's code in PyTorch (bf16 autocast, channels last), one thread, in turns; speeds in images/s and their ratio
# (beside_peer.py). Needs PyPI once, for the dall-e package (into build/bench-packages).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

packages=build/bench-packages
if [[ ! -d $packages/dall_e ]]; then
  .venv/bin/python -m pip install --quiet --target "$packages" --no-deps dall-e==0.1 attrs==25.3.0 requests urllib3 idna \
    certifi numpy charset-normalizer
fi
PYTHONPATH=$packages PYTHONDONTWRITEBYTECODE=1 exec .venv/bin/python scripts/bench/beside_peer.py dvae-train "$@"
