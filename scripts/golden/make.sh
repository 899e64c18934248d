#!/usr/bin/env bash
# Regenerates what PyTorch and the dall-e package give for tests/golden/, in a scratch venv. See README.md.
set -euo pipefail
cd "$(dirname "$0")"
venv="${GOLDEN_VENV:-$(mktemp -d)/venv}"
if [[ ! -x "$venv/bin/python" ]]; then
  python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet torch==2.11.0 numpy==2.2.6 safetensors==0.6.2 packaging attrs==25.3.0
  "$venv/bin/pip" install --quiet pillow==10.4.0  # resizes columns first, see pictures.py
  "$venv/bin/pip" install --quiet --no-deps dall-e==0.1  # its other requirements serve downloads and tests
  "$venv/bin/pip" install --quiet torch==2.11.0 torchvision==0.26.0 open-clip-torch==3.3.0 ftfy==6.3.1
  "$venv/bin/pip" install --quiet --no-deps clip-anytorch==2.6.0
fi
export PYTHONDONTWRITEBYTECODE=1 OMP_NUM_THREADS=1
for script in dvae transformer prior prior_options clip clip_packages names adamw safetensors_file torch_files; do
  "$venv/bin/python" "$script.py"
done
