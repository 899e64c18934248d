#!/usr/bin/env bash
# Installs what a build needs, from Debian's packages and PyPI. Starts from a minimal Debian 12 (nothing but bash), works
# as root or with sudo, and may be run again at any time: what is there is left alone.
#
#   scripts/setup.sh                    everything, LibTorch from the PyPI wheel in .venv (about 5 GB)
#   LIBTORCH=DIR scripts/setup.sh       with your own unpacked LibTorch; CMAKE_PREFIX_PATH works too
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

DEBIAN_PACKAGES=(
  g++ make cmake ninja-build git python3 python3-venv python3-numpy ccache mold pkg-config clang-format ca-certificates
  libopencv-core-dev libopencv-imgproc-dev libopencv-imgcodecs-dev libyaml-cpp-dev libspdlog-dev libfmt-dev
  libcli11-dev libsentencepiece-dev libarchive-dev nlohmann-json3-dev libxxhash-dev libutf8proc-dev libicu-dev zlib1g-dev libprotobuf-dev
  protobuf-compiler libgtest-dev libgmock-dev libbenchmark-dev libgloo-dev)
TORCH_VERSION=2.11.0
NVCC_REQUIREMENTS=("cuda-toolkit[nvcc,crt,cccl,cudart]==13.0.2" "nvidia-nvvm==13.0.*")
NVCC_WHEELS=(nvidia_cuda_nvcc-13.0 nvidia_cuda_crt-13.0 nvidia_cuda_cccl-13.0 nvidia_cuda_runtime-13.0 nvidia_nvvm-13.0)

say() { printf 'setup: %s\n' "$*"; }
die() {
  printf 'setup: error: %s\n' "$1" >&2
  shift
  local line
  for line in "$@"; do printf '  %s\n' "$line" >&2; done
  exit 1
}

# Free space of the file system that holds $1, against $2 MiB needed for $3.
need_space() {
  local free
  free=$(($(df -Pk "$1" | awk 'NR == 2 { print $4 }') / 1024))
  ((free >= $2)) || die "not enough disk space for $3: $2 MiB needed in $1, $free MiB free" \
    "free some space there, or move the project to a larger disk"
}

missing_packages() {
  local package
  for package in "${DEBIAN_PACKAGES[@]}"; do
    [[ $(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null) == installed ]] || echo "$package"
  done
}

as_root() {
  if [[ $(id -u) == 0 ]]; then "$@"; else sudo "$@"; fi
}

# run_apt LOG ARGUMENTS...: apt-get with its output in LOG; of a failure, the first lines that say why are shown.
run_apt() {
  local log=$1
  shift
  as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=300 -o APT::Update::Error-Mode=any "$@" \
    >"$log" 2>&1 && return
  grep -E '^(E|W|dpkg):' "$log" | head -4 >&2
  return 1
}

install_debian_packages() {
  local missing=() unknown=() package
  if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
    die "this system has no apt-get; the script knows Debian 12 and its relatives only" \
      "install the counterparts of these Debian packages by hand, then use cmake --preset release:" "${DEBIAN_PACKAGES[*]}"
  fi
  mapfile -t missing < <(missing_packages)
  if ((${#missing[@]} == 0)); then
    say "Debian packages: all ${#DEBIAN_PACKAGES[@]} are installed"
    return
  fi
  say "Debian packages to install: ${missing[*]}"
  if [[ $(id -u) != 0 ]] && ! command -v sudo >/dev/null; then
    die "Debian packages are missing, and this is neither root nor a system with sudo; run as root:" \
      "apt-get update && apt-get install -y --no-install-recommends ${missing[*]}"
  fi
  need_space /usr 2500 "Debian packages"
  as_root true || die "sudo did not give root rights, which apt-get needs; run as root:" \
    "apt-get update && apt-get install -y --no-install-recommends ${missing[*]}"
  local log
  log=$(mktemp)
  run_apt "$log" update || say "apt-get update had errors; going on with the package lists that are there"
  for package in "${missing[@]}"; do
    [[ -n $(apt-cache madison "$package" 2>/dev/null) ]] || unknown+=("$package")
  done
  ((${#unknown[@]} == 0)) || die "apt does not know these packages: ${unknown[*]}" \
    "either the network is down, or the package sources lack Debian 12 (bookworm) main"
  run_apt "$log" install -y --no-install-recommends "${missing[@]}" ||
    die "apt-get could not install: ${missing[*]}" "its whole output is in $log" \
      "no network, a full disk and a half-finished upgrade (apt-get -f install) are the usual reasons"
  rm -f "$log"
  mapfile -t missing < <(missing_packages)
  ((${#missing[@]} == 0)) || die "apt-get ended without an error, but these packages are still missing: ${missing[*]}"
}

# Prints the LibTorch that the user brought, if any. The same rules as cmake/Libtorch.cmake.
own_libtorch() {
  local prefix root
  if [[ -n ${LIBTORCH:-} ]]; then
    [[ -f $LIBTORCH/include/ATen/core/Tensor.h && -f $LIBTORCH/lib/libtorch_cpu.so ]] ||
      die "LIBTORCH=$LIBTORCH holds no LibTorch" "expected include/ATen/core/Tensor.h and lib/libtorch_cpu.so in it"
    echo "$LIBTORCH"
    return
  fi
  while IFS= read -r -d: prefix; do
    for root in "$prefix" "$prefix/../.."; do
      if [[ -n $prefix && -f $root/include/ATen/core/Tensor.h ]]; then
        echo "$root"
        return
      fi
    done
  done <<<"${CMAKE_PREFIX_PATH:-}:"
}

# Whether the venv holds the wheel whose metadata folder starts with $1; pip writes RECORD last.
has_wheel() { compgen -G ".venv/lib/python3*/site-packages/$1*.dist-info/RECORD" >/dev/null; }

has_nvcc() { command -v nvcc >/dev/null || [[ -x ${CUDA_HOME:-/usr/local/cuda}/bin/nvcc || -x ${CUDACXX:-} ]]; }

install_wheels() {
  local wanted=() own wheel
  own=$(own_libtorch)
  if [[ -n $own ]]; then
    say "LibTorch: yours, in $own"
  elif has_wheel "torch-$TORCH_VERSION" && compgen -G ".venv/lib/python3*/site-packages/torch/lib/libtorch_cpu.so" >/dev/null; then
    say "LibTorch: $TORCH_VERSION is in .venv"
  else
    [[ $(uname -sm) == "Linux x86_64" ]] || die "the LibTorch wheel is for Linux on x86-64, this is $(uname -sm)" \
      "build or download LibTorch $TORCH_VERSION for this machine and set LIBTORCH=DIR"
    wanted+=("torch==$TORCH_VERSION")
    need_space . 8000 "LibTorch (installed 5 GB, the rest while installing)"
    need_space "${TMPDIR:-/tmp}" 3000 "downloads"
  fi
  if has_nvcc; then
    say "nvcc: from the CUDA toolkit on this machine"
  else
    for wheel in "${NVCC_WHEELS[@]}"; do
      has_wheel "$wheel" && continue
      wanted+=("${NVCC_REQUIREMENTS[@]}")
      need_space . 1000 "nvcc"
      break
    done
    [[ " ${wanted[*]} " == *cuda-toolkit* ]] || say "nvcc: from PyPI, in .venv"
  fi
  ((${#wanted[@]} > 0)) || return 0

  if ! .venv/bin/python3 -m pip --version >/dev/null 2>&1; then
    say "creating the Python environment .venv"
    python3 -m venv --clear .venv || die "python3 could not create .venv" "is python3-venv installed, and the folder writable?"
  fi
  say "installing from PyPI into .venv (a few minutes): ${wanted[*]}"
  .venv/bin/python3 -m pip install --quiet --no-cache-dir --disable-pip-version-check "${wanted[@]}" ||
    die "pip could not install ${wanted[*]} (see its messages above)" \
      "if PyPI cannot be reached: repeat later, or unpack LibTorch $TORCH_VERSION yourself and set LIBTORCH=DIR" \
      "if space ran out: $(df -Ph . | awk 'NR == 2 { print $4 }') are free here, 8 GB are needed"
}

install_debian_packages
install_wheels
say "done; next: scripts/demo.sh, scripts/test.sh or cmake --preset release"
