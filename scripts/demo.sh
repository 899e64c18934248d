#!/usr/bin/env bash
# scripts/demo.sh: set-up, build, then the whole system on the shipped pictures: tokenizer, dVAE, CLIP, prior, and reranked
# samples for captions of the training set. It ends with its figures, each beside its bar; exit code 1 where one is missed.
# Everything is written under demo/. A stage that has finished is not run again, one that was interrupted goes on where it
# saved; remove its folder and its .done file under demo/ to run it anew.
#   --seed N (0), --out DIR (demo), --threads N (all)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

seed=0 out=demo threads=0
while [[ $# -gt 0 ]]; do
  case $1 in
    --seed) seed=${2:?--seed needs a number}; shift ;;
    --out) out=${2:?--out needs a folder}; shift ;;
    --threads) threads=${2:?--threads needs a number}; shift ;;
    *) echo "usage: scripts/demo.sh [--seed N] [--out DIR] [--threads N]" >&2; exit 2 ;;
  esac
  shift
done
scripts/build.sh release
bin=build/release/bin
configs=configs/demo
mkdir -p "$out"

# stage NAME COMMAND CONFIG [FLAG...]: one trainer, with its run directory in demo/NAME.
stage() {
  local name=$1 command=$2 config=$3 dir=$out/$1 start=$SECONDS resume=()
  shift 3
  if [[ -e $out/$name.done ]]; then
    echo "demo: $name has finished before, in $dir"
    return
  fi
  if [[ -e $dir/checkpoints/latest ]]; then
    echo "demo: $name goes on from its last checkpoint"
    resume=(--resume)
  else
    rm -rf "$dir"  # stopped before its first checkpoint: nothing to go on from
  fi
  "$bin/$command" "$config" --run-dir "$dir" "${resume[@]}" "$@"
  touch "$out/$name.done"
  echo "demo: $name took $((SECONDS - start)) s"
}

common=(--threads "$threads" --set trainer.seed="$seed")
parts=()
[[ $out == demo ]] || parts=(--set dvae="$(realpath "$out")/dvae" --set tokenizer="$(realpath "$out")/tokenizer")
stage tokenizer train-tokenizer "$configs/tokenizer.yaml"
stage dvae train-dvae "$configs/dvae.yaml" "${common[@]}"
stage clip train-clip "$configs/clip.yaml" "${common[@]}" "${parts[@]}"
stage prior train-prior "$configs/prior.yaml" "${common[@]}" "${parts[@]}"

# draw NAME CAPTIONS: reranked samples for a file of captions, in demo/NAME.
draw() {
  local name=$1 captions=$2
  if [[ -e $out/$name.done ]]; then
    echo "demo: $name has been drawn before, in $out/$name"
    return
  fi
  rm -rf "${out:?}/$name"
  "$bin/sample-and-rerank" --prior "$out/prior" --dvae "$out/dvae" --clip "$out/clip" \
    --captions "$captions" --candidates 16 --keep 4 --out "$out/$name" --threads "$threads"
  touch "$out/$name.done"
}

draw samples "$configs/captions.txt"
draw check "$configs/check_captions.txt"

met=0
"$bin/demo-report" --run "$out" --samples "$out/check" --data data/emoji/train.tar || met=$?
echo "demo: finished in $SECONDS s; open $out/samples/index.html and $out/samples/contact-sheet.png"
exit "$met"
