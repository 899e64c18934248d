# Sourced by the benchmarks that time DALLE-pytorch, in the repository's root: installs it from PyPI into
# build/bench-packages unless it is there.
packages=build/bench-packages
if [[ ! -d $packages/dalle_pytorch ]]; then
  .venv/bin/python -m pip install --quiet --target "$packages" --no-deps dalle-pytorch==1.6.6 einops==0.8.1 \
    axial-positional-embedding==0.3.12 rotary-embedding-torch==0.9.1 numpy==2.2.6
fi
export PYTHONPATH=$packages PYTHONDONTWRITEBYTECODE=1
