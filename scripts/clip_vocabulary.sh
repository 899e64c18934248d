#!/usr/bin/env bash
# scripts/clip_vocabulary.sh OUT.txt.gz: CLIP's published vocabulary, bpe_simple_vocab_16e6.txt.gz (1.3 MB; MIT License,
# Copyright (c) 2021 OpenAI), out of PyPI's package open-clip-torch. For import-weights openai-clip and open-clip, and for
# train-clip with tokenizer_kind: clip_bpe.
set -euo pipefail
out=${1:?usage: clip_vocabulary.sh OUT.txt.gz}
[[ ! -e $out ]] || { echo "clip_vocabulary.sh: $out exists" >&2; exit 1; }
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
python3 -m venv "$scratch/venv"
"$scratch/venv/bin/pip" download --quiet --disable-pip-version-check --no-deps --dest "$scratch" open-clip-torch==3.3.0
python3 -m zipfile -e "$scratch"/open_clip_torch-*.whl "$scratch/wheel"
file=$scratch/wheel/open_clip/bpe_simple_vocab_16e6.txt.gz
echo "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a  $file" | sha256sum --check --quiet
mkdir -p "$(dirname "$out")"
cp "$file" "$out"
echo "$out"
