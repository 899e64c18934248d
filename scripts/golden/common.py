"""What the golden scripts share: seeded random tensors, gradients by name, and the file format.

Values are computed in float64 from float32-representable weights and inputs wherever PyTorch allows it, then stored as
float32: the files hold the true value to f32 rounding, and the C++ side's whole error is its own.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

GOLDEN_DIR = Path(__file__).resolve().parents[2] / "tests" / "golden"


class Random:
    """Normal and uniform tensors from one seed, rounded to float32 and returned as float64."""

    def __init__(self, seed: int):
        self.seed = seed
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int, std: float = 1.0, mean: float = 0.0) -> torch.Tensor:
        return (torch.randn(*shape, generator=self.generator) * std + mean).double()

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> torch.Tensor:
        return (torch.rand(*shape, generator=self.generator) * (high - low) + low).double()

    def integers(self, high: int, *shape: int) -> torch.Tensor:
        return torch.randint(0, high, shape, generator=self.generator)

    def gumbel(self, *shape: int) -> torch.Tensor:
        return -torch.log(-torch.log(self.uniform(*shape, low=1e-4, high=1 - 1e-4))).float().double()


def gradients(loss: torch.Tensor, tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """{prefix + name: dloss/dtensor}; zeros where the loss does not depend on a tensor."""
    grads = torch.autograd.grad(loss, list(tensors.values()), allow_unused=True, retain_graph=True)
    return {
        prefix + name: torch.zeros_like(tensor) if grad is None else grad
        for (name, tensor), grad in zip(tensors.items(), grads)
    }


def save(name: str, tensors: dict[str, torch.Tensor], seed: int) -> None:
    """Writes tests/golden/NAME.safetensors: f32 and int64 tensors, torch version and seed in the metadata."""
    stored = {}
    for key, value in tensors.items():
        value = value.detach()
        if value.is_floating_point():
            value = value.float()
        elif value.dtype == torch.bool:
            value = value.to(torch.uint8)
        stored[key] = value.contiguous().clone()
    path = GOLDEN_DIR / f"{name}.safetensors"
    version = torch.__version__.split("+")[0]
    made_by = f"scripts/golden/{Path(sys.argv[0]).name}, torch {version}, seed {seed}"
    save_file(stored, path, {"made_by": made_by})  # one entry: the order of several is not fixed
    print(f"{path.name}: {len(stored)} tensors, {path.stat().st_size} bytes")
