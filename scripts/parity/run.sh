#!/usr/bin/env bash
# scripts/parity/run.sh NAME [BUILD_DIR [ARGUMENT...]]: compares the built commands with the Python packages that NAME.py is
# about, in a scratch venv with the packages of scripts/golden/make.sh and Pillow (about 5 GB; GOLDEN_VENV=DIR keeps and
# reuses one).
set -euo pipefail
name=${1:?usage: run.sh NAME [BUILD_DIR [ARGUMENT...]]}
build=${2:+$(realpath "$2")}
cd "$(dirname "${BASH_SOURCE[0]}")"
venv="${GOLDEN_VENV:-$(mktemp -d)/venv}"
if [[ ! -x "$venv/bin/python" ]]; then
  python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet torch==2.11.0 numpy==2.2.6 safetensors==0.6.2 packaging attrs==25.3.0 pillow
  "$venv/bin/pip" install --quiet --no-deps dall-e==0.1  # its other requirements serve downloads and tests
  "$venv/bin/pip" install --quiet torch==2.11.0 torchvision==0.26.0 open-clip-torch==3.3.0 ftfy==6.3.1
  "$venv/bin/pip" install --quiet --no-deps clip-anytorch==2.6.0
fi
PYTHONDONTWRITEBYTECODE=1 exec "$venv/bin/python" "$name.py" ${build:+"$build"} "${@:3}"
