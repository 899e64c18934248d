"""Writes tests/golden/safetensors_file.safetensors with the safetensors package: one tensor of every type we read.

`safetensors_file.py check FILE` instead reads a file that our writer made from the same values and compares all of it.
"""

import sys

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from common import GOLDEN_DIR

METADATA = {"who": "safetensors package", "text": "Grüße, 世界 \"quoted\"\n"}


def tensors() -> dict[str, torch.Tensor]:
    ramp = torch.arange(24).reshape(2, 3, 4)
    values = {f"{str(dtype)[6:]}": (ramp / 4 - 2).to(dtype)
              for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16)}
    values |= {f"{str(dtype)[6:]}": (ramp - 5).to(dtype)
               for dtype in (torch.int64, torch.int32, torch.int16, torch.int8)}
    values["uint8"] = (ramp * 10).to(torch.uint8)
    values["bool"] = ramp % 3 == 0
    values["scalar"] = torch.tensor(2.5)
    values["empty"] = torch.zeros(0, 7)
    return values


def check(path: str) -> None:
    with safe_open(path, "pt") as file:
        assert file.metadata() == METADATA, file.metadata()
        expected = tensors()
        assert set(file.keys()) == set(expected), file.keys()
        for name, value in expected.items():
            got = file.get_tensor(name)
            assert got.dtype == value.dtype and torch.equal(got, value), name
    print(f"{path}: all {len(expected)} tensors and the metadata agree")


if len(sys.argv) == 3 and sys.argv[1] == "check":
    check(sys.argv[2])
else:
    save_file(tensors(), GOLDEN_DIR / "safetensors_file.safetensors", METADATA)
