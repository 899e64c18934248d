#!/usr/bin/env bash
# scripts/bench/clip.sh [--rounds N] [--bin DIR] [--peer NAME] [CONFIG...]: our CLIP scoring beside open_clip and clip-anytorch,
# each in the fastest of its settings (pure bf16, autocast, f32, compiled), one thread, in turns; pairs/s and their ratio
# (beside_peer.py). Needs PyPI once, for the two packages (into build/bench-clip, a venv on top of .venv).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

venv=build/bench-clip
if [[ ! -x $venv/bin/python ]] || ! "$venv/bin/python" -c "import open_clip, clip" 2>/dev/null; then
  python3 -m venv "$venv"
  folder=$(echo "$venv"/lib/python3*/site-packages)
  echo "$PWD"/.venv/lib/python3*/site-packages >"$folder/libtorch.pth"  # PyTorch is there
  "$venv/bin/pip" install --quiet torch==2.11.0 torchvision==0.26.0 open-clip-torch==3.3.0
  "$venv/bin/pip" install --quiet --no-deps clip-anytorch==2.6.0
fi
PYTHONDONTWRITEBYTECODE=1 exec "$venv/bin/python" scripts/bench/beside_peer.py clip-score "$@"
