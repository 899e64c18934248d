#!/usr/bin/env bash
# scripts/demo.sh: set-up, build, then the whole system on the shipped pictures: tokenizer, dVAE, CLIP, prior, and reranked
# samples for captions of the training set. It ends with its figures, each beside its bar; exit code 1 where one is missed.
# Everything is written under demo/. A stage that has finished is not run again, one that was interrupted goes on where it
# saved; remove its folder and its .done file under demo/ to run it anew.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

scripts/build.sh release
bin=build/release/bin
configs=configs/demo
out=demo
mkdir -p "$out"

# stage NAME COMMAND CONFIG: one trainer, with its run directory in demo/NAME.
stage() {
  local name=$1 command=$2 config=$3 dir=$out/$1 start=$SECONDS resume=()
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
  "$bin/$command" "$config" --run-dir "$dir" "${resume[@]}"
  touch "$out/$name.done"
  echo "demo: $name took $((SECONDS - start)) s"
}

stage tokenizer train-tokenizer "$configs/tokenizer.yaml"
stage dvae train-dvae "$configs/dvae.yaml"
stage clip train-clip "$configs/clip.yaml"
stage prior train-prior "$configs/prior.yaml"

# draw NAME CAPTIONS: reranked samples for a file of captions, in demo/NAME.
draw() {
  local name=$1 captions=$2
  if [[ -e $out/$name.done ]]; then
    echo "demo: $name has been drawn before, in $out/$name"
    return
  fi
  rm -rf "${out:?}/$name"
  "$bin/sample-and-rerank" --prior "$out/prior" --dvae "$out/dvae" --clip "$out/clip" \
    --captions "$captions" --candidates 16 --keep 4 --out "$out/$name"
  touch "$out/$name.done"
}

draw samples "$configs/captions.txt"
draw check "$configs/check_captions.txt"

met=0
"$bin/demo-report" --run "$out" --samples "$out/check" --data data/emoji/train.tar || met=$?
echo "demo: finished in $SECONDS s; open $out/samples/index.html and $out/samples/contact-sheet.png"
exit "$met"
