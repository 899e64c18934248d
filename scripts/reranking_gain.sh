#!/usr/bin/env bash
# scripts/reranking_gain.sh [--threads N] [--out DIR] [--bin DIR] [DEMO...]: does reranking help? Best of 32 candidates over a
# random one, for all captions of the demo and three seeds, by two judges that are not the reranker: the nearest training
# picture, and a CLIP of another seed and another split, which has seen no picture of a dVAE (docs/reranking.md).
# DEMO: folders of scripts/demo.sh --out; without one, three are trained (an hour of two CPU cores). Run I draws from DEMO
# number (I - 1) modulo their number, with noise seed I. Finished parts are not done again. Exit code 1 where a gain is not
# above two standard errors.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

threads=0 out=reranking-gain bin='' demos=()
while [[ $# -gt 0 ]]; do
  case $1 in
    --threads) threads=${2:?--threads needs a number}; shift ;;
    --out) out=${2:?--out needs a folder}; shift ;;
    --bin) bin=${2:?--bin needs a folder}; shift ;;
    -*) echo "usage: scripts/reranking_gain.sh [--threads N] [--out DIR] [--bin DIR] [DEMO...]" >&2; exit 2 ;;
    *) demos+=("$(realpath "$1")") ;;
  esac
  shift
done
mkdir -p "$out"
out=$(realpath "$out")
if [[ -z $bin ]]; then
  scripts/build.sh release
  bin=build/release/bin
fi
if [[ ${#demos[@]} == 0 ]]; then
  for seed in 1 2 3; do
    scripts/demo.sh --seed "$seed" --out "$out/demo-$seed" --threads "$threads" || true  # its bars are its own matter
    demos+=("$out/demo-$seed")
  done
fi

# Another split: every tenth of all 1,360 pictures, counted from the third, is held out instead of the shipped val.tar.
split() {
  local pictures=$out/pictures part number=0
  rm -rf "$pictures"
  for part in train val; do
    mkdir -p "$pictures/$part"
    tar xf "data/emoji/$part.tar" -C "$pictures/$part"
  done
  : > "$out/train.files"
  : > "$out/val.files"
  while read -r text; do
    part=train
    if ((number++ % 10 == 2)); then part=val; fi
    printf '%s\n%s\n' "${text%.txt}.png" "$text" >> "$out/$part.files"
  done < <(cd "$pictures" && find . -name '*.txt' | LC_ALL=C sort)
  for part in train val; do tar cf "$out/$part.tar" -C "$pictures" --transform 's#^[.]/##' --transform 's#/#-#' -T "$out/$part.files"; done
  rm -rf "$pictures"
}

if [[ ! -e $out/judge.done ]]; then
  split
  sed "s#\.\./\.\./data/emoji/#$out/#" configs/demo/clip.yaml > "$out/judge.yaml"
  rm -rf "$out/judge"
  "$bin/train-clip" "$out/judge.yaml" --run-dir "$out/judge" --threads "$threads" --set trainer.seed=100 \
    --set tokenizer="${demos[0]}/tokenizer" --set dvae="${demos[0]}/dvae" --set reconstructed_share=0
  touch "$out/judge.done"
fi
awk '!seen[$0]++' configs/demo/captions.txt configs/demo/check_captions.txt > "$out/captions.txt"
samples=()
for run in 1 2 3; do
  folder=$out/samples-$run
  if [[ ! -e $folder/scores.json ]]; then
    "$bin/sample-and-rerank" --run "${demos[(run - 1) % ${#demos[@]}]}" --captions "$out/captions.txt" --candidates 32 \
      --keep 4 --seed "$run" --threads "$threads" --out "$folder"
  fi
  samples+=(--samples "$folder")
done
"$bin/reranking-report" "${samples[@]}" --judge "$out/judge" --data data/emoji/train.tar --threads "$threads"
