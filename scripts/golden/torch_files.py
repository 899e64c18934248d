"""Files of torch.save for tests/storage and tests/interop: what our reader of untrusted pickles has to understand.

`torch_files.py check FILE.pt [FILE.safetensors]` instead reads files of ours as a user would, compares them, and, for the
state dict that the tests write, its values.
"""

import sys
import warnings
from collections import OrderedDict

import torch
from safetensors.torch import load_file

from common import GOLDEN_DIR, Random
from dvae import SEED, build

TYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
         torch.uint8, torch.bool)


def every_type() -> dict[str, torch.Tensor]:
    """The values of tests/storage/every_type.h."""
    ramp = torch.arange(24).reshape(2, 3, 4)
    values = {f"{str(dtype)[6:]}": ((ramp / 4 - 2) if dtype.is_floating_point else ramp - 5).to(dtype)
              for dtype in TYPES[:8]}
    values |= {"uint8": (ramp * 10).to(torch.uint8), "bool": ramp % 3 == 0}
    return values | {"scalar": torch.tensor(2.5), "empty": torch.zeros(0, 7)}


def views() -> dict[str, torch.Tensor]:
    """Tensors that share one storage, with strides that are not rows."""
    base = torch.arange(24.0)
    return {"base": base, "transposed": base.view(4, 6).t(), "rows_2_to_4": base.view(4, 6)[2:4],
            "every_third": base[1::3], "channels_last": base.view(1, 2, 3, 4).to(memory_format=torch.channels_last)}


class Everything(torch.nn.Module):
    """Parameters, a shared one, buffers that are saved and not saved, modules within modules."""

    def __init__(self):
        super().__init__()
        self.inner = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.BatchNorm1d(3))
        self.tied = self.inner[0]
        self.gain = torch.nn.Parameter(torch.full((2,), 0.5))
        self.absent = torch.nn.Parameter(torch.zeros(1))
        self.absent = None
        self.register_buffer("steps", torch.tensor(7))
        self.register_buffer("scratch", torch.zeros(2), persistent=False)
        with torch.no_grad():
            for number, parameter in enumerate(self.parameters()):
                parameter.copy_(torch.arange(parameter.numel()).reshape(parameter.shape) + number)


def write() -> None:
    folder = GOLDEN_DIR / "torch"
    folder.mkdir(exist_ok=True)
    encoder, decoder = build(Random(SEED))  # the weights of tests/golden/dvae.safetensors
    module = Everything()
    state = OrderedDict(every_type() | views())
    optimizer = torch.optim.Adam(module.parameters())
    nested = {"model": module.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3, "note": "text",
              "parameter": torch.nn.Parameter(torch.ones(2)), 7: torch.zeros(1), "none": None, "rate": 0.1,
              "large": 1 << 40, "list": [1, 2.5, b"bytes", (1,), {1, 2}]}
    torch.save(encoder, folder / "encoder.pkl")
    torch.save(decoder, folder / "decoder.pkl")
    torch.save(state, folder / "state.pt")
    torch.save(state, folder / "state_protocol4.pt", pickle_protocol=4)
    torch.save(state, folder / "state_legacy.pt", _use_new_zipfile_serialization=False)
    torch.save(nested, folder / "nested.pt")
    torch.save(module, folder / "module.pkl")
    torch.save({"sparse": torch.eye(2).to_sparse()}, folder / "sparse.pt")
    torch.serialization.set_crc32_options(False)
    torch.save(views(), folder / "no_checksums.pt")
    warnings.simplefilter("ignore")  # TorchScript is deprecated; old files of it are still around
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 3)), folder / "torchscript.pt")
    for path in sorted(folder.iterdir()):
        print(f"{path.name}: {path.stat().st_size} bytes")


def check(paths: list[str]) -> None:
    state = torch.load(paths[0], weights_only=True)
    assert all(value.is_contiguous() and not value.requires_grad for value in state.values())
    assert torch.equal(torch.load(paths[0], weights_only=True, mmap=True)[next(iter(state))], next(iter(state.values())))
    expected = load_file(paths[1]) if len(paths) > 1 else every_type()
    assert set(state) == set(expected), set(state) ^ set(expected)
    for name, value in expected.items():
        assert state[name].dtype == value.dtype and torch.equal(state[name], value), name
    print(f"{paths[0]}: all {len(state)} tensors agree")


if __name__ == "__main__":
    if sys.argv[1:2] == ["check"]:
        check(sys.argv[2:])
    else:
        write()
