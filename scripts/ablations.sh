#!/usr/bin/env bash
# scripts/ablations.sh [--quick] [--seeds N] [--out DIR] [--bin DIR]: trains every variant of configs/ablations/variants.txt over
# N seeds (3) on one thread each, one after the other, and ends with a table (printed and DIR/table.md) and a picture
# (DIR/reconstructions.png). About an hour of one CPU core; --quick is 100 steps and one seed, to see that it works.
# Finished runs are not run again and interrupted ones go on where they saved, so it may be stopped and started at will.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

seeds=3 out=ablations bin='' extra=()
while [[ $# -gt 0 ]]; do
  case $1 in
    --quick) seeds=1 out=ablations-quick
      extra=(--set trainer.num_steps=100 --set relaxation.temperature_steps=70 --set learning_rate.steps=70) ;;
    --seeds) seeds=$2; shift ;;
    --out) out=$2; shift ;;
    --bin) bin=$2; shift ;;
    *) echo "usage: scripts/ablations.sh [--quick] [--seeds N] [--out DIR] [--bin DIR]" >&2; exit 2 ;;
  esac
  shift
done
if [[ -z $bin ]]; then
  scripts/build.sh release
  bin=build/release/bin
fi
variants=configs/ablations/variants.txt
mkdir -p "$out"

# train NAME SEED key=value...: one run, in DIR/NAME-seedSEED.
train() {
  local name=$1-seed$2 seed=$2 dir=$out/$1-seed$2 resume=() sets=() start=$SECONDS
  shift 2
  if [[ -e $dir.done ]]; then
    echo "ablations: $name has finished before"
    return
  fi
  if [[ -e $dir/checkpoints/latest ]]; then
    resume=(--resume)
  else
    rm -rf "$dir"
  fi
  for assignment in "$@"; do sets+=(--set "$assignment"); done
  "$bin/train-dvae" configs/ablations/dvae.yaml --run-dir "$dir" --threads 1 --device cpu --set trainer.seed="$seed" \
    "${sets[@]}" "${extra[@]}" "${resume[@]}" > "$dir.out" 2>&1 || { tail -20 "$dir.out" >&2; return 1; }
  touch "$dir.done"
  echo "ablations: $name took $((SECONDS - start)) s"
}

# By seed first, so that a run that is stopped early has every variant.
for ((seed = 0; seed < seeds; ++seed)); do
  while IFS='|' read -r name _ assignments <&3; do
    name=${name//[[:space:]]/}
    [[ -z $name || $name == \#* ]] && continue
    read -ra list <<< "$assignments" || true
    train "$name" "$seed" "${list[@]}"
  done 3< "$variants"
done
"$bin/ablation-report" --runs "$out" --variants "$variants" --seeds "$seeds" --table "$out/table.md" \
  --picture "$out/reconstructions.png"
echo "ablations: finished in $SECONDS s; open $out/table.md and $out/reconstructions.png"
