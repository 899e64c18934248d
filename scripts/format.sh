#!/usr/bin/env bash
# scripts/format.sh [--check]: clang-format over our sources, in place; with --check it only says what it would change.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

mode=(-i)
[[ ${1:-} == --check ]] && mode=(--dry-run -Werror)
find include src tests tools \( -name '*.h' -o -name '*.cpp' -o -name '*.cu' \) -print0 |
  xargs -0 -r clang-format --style=file "${mode[@]}"
