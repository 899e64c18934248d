"""Our dVAE beside the `dall-e` package's (PyPI, OpenAI's release) at the released size, through import-weights.

    scripts/parity/run.sh openai_dvae [BUILD_DIR]     (build/release)

The package makes an encoder and a decoder (n_hid 256, 8192 codes, 256x256 pictures) with random weights and saves them
as whole modules by torch.save, as OpenAI's encoder.pkl and decoder.pkl were. `import-weights` reads them, `reconstruct
--save-tokens` encodes pictures, `dvae-outputs` (tests/integration) gives numbers that no 8-bit picture has rounded, and
`export-weights` writes a state dict and a safetensors file that must read back equal here. Prints a line for each figure
with its bar; exits with 1 where one is missed. Takes a few minutes and 4 GB on two cores.
"""

import json
import subprocess
import sys
import tempfile
import time
import types
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file, save_file

sys.modules.setdefault("requests", types.ModuleType("requests"))  # the package imports it for downloads only
from dall_e import Decoder, Encoder, map_pixels, unmap_pixels  # noqa: E402

SEED, PICTURES, SIZE = 0, 4, 256
TOKENS_BAR, OUTPUT_BAR = 0.999, 2e-3


def pictures(generator: torch.Generator) -> torch.Tensor:
    """8-bit pictures [B, 3, S, S] from smooth to noisy, so that neighbouring codes differ and repeat."""
    out = []
    for number in range(PICTURES):
        coarse = torch.rand(1, 3, 4 << 2 * number, 4 << 2 * number, generator=generator)
        out.append(torch.nn.functional.interpolate(coarse, (SIZE, SIZE), mode="bilinear", align_corners=False)[0])
    return torch.stack(out).mul(255).round().to(torch.uint8)


def randomized(module: torch.nn.Module, generator: torch.Generator) -> torch.nn.Module:
    """The package starts biases at 0 and its residual path, times 1/64, near 0: a missing bias or a wrong residual path
    would go unseen. Here biases are random and the residual path is about as large as the other; a mid-grey picture
    gives 0 after the first layer, so that codes follow what is in a picture rather than how bright it is."""
    for name, parameter in module.named_parameters():
        if name.endswith(".b"):
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
        elif ".res_path." in name:
            parameter.data *= 3.5
    if isinstance(module, Encoder):
        module.blocks.input.b.data = -0.5 * module.blocks.input.w.sum((1, 2, 3))
    return module


def run(bin_dir: Path, command: str, *arguments: object) -> None:
    begin = time.time()
    subprocess.run([bin_dir / command, *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)
    print(f"  {command}: {time.time() - begin:.1f} s")


def report(name: str, value: float, bar: float, larger_is_better: bool = False) -> bool:
    good = value >= bar if larger_is_better else value <= bar
    print(f"{name}: {value:.6g} (bar: {'>=' if larger_is_better else '<='} {bar:g}) {'ok' if good else 'MISSED'}")
    return good


def check_export(bin_dir: Path, folder: Path, expected: dict[str, torch.Tensor]) -> bool:
    run(bin_dir, "export-weights", folder / "dvae", "--out", folder / "export.pt")
    run(bin_dir, "export-weights", folder / "dvae", "--out", folder / "export.safetensors")
    same = True
    for name, state in (("export.pt, torch.load(weights_only=True)", torch.load(folder / "export.pt", weights_only=True)),
                        ("export.safetensors, safetensors", load_file(folder / "export.safetensors"))):
        equal = set(state) == set(expected) and all(torch.equal(state[key], expected[key]) for key in expected)
        print(f"{name}: {len(state)} tensors {'equal' if equal else 'DIFFER'}")
        same = same and equal
    return same


@torch.no_grad()
def main(bin_dir: Path, folder: Path) -> bool:
    generator = torch.Generator().manual_seed(SEED)
    torch.manual_seed(SEED)
    encoder, decoder = (randomized(part, generator) for part in (Encoder(), Decoder()))
    torch.save(encoder, folder / "encoder.pkl")
    torch.save(decoder, folder / "decoder.pkl")
    run(bin_dir, "import-weights", "openai-dvae", "--encoder", folder / "encoder.pkl", "--decoder",
        folder / "decoder.pkl", "--out", folder / "dvae")

    images = pictures(generator)
    files = [folder / f"{number}.png" for number in range(PICTURES)]
    for image, file in zip(images, files):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(file)
    pixels = images.float() / 255
    codes, stats = [], []
    for picture in pixels.split(1):
        codes.append(encoder(map_pixels(picture)).argmax(1))
        one_hot = torch.nn.functional.one_hot(codes[-1], encoder.vocab_size).permute(0, 3, 1, 2).float()
        stats.append(decoder(one_hot))
    codes, stats = torch.cat(codes), torch.cat(stats)
    reconstruction = unmap_pixels(torch.sigmoid(stats[:, :3]))

    save_file({"pixels": pixels, "codes": codes}, folder / "in.safetensors")
    run(bin_dir, "dvae-outputs", folder / "dvae", folder / "in.safetensors", folder / "out.safetensors")
    run(bin_dir, "reconstruct", *files, "--dvae", folder / "dvae", "--out", folder / "pictures", "--precision", "f32",
        "--save-tokens")
    ours = load_file(folder / "out.safetensors")
    tokens = torch.tensor([json.loads((folder / f"pictures/{n}.tokens.json").read_text()) for n in range(PICTURES)])

    print(f"{codes.numel()} positions, {codes.unique().numel()} different codes; "
          f"stats between {stats.min():.3g} and {stats.max():.3g}")
    return all([
        report("tokens equal, dvae-outputs", (ours["codes"] == codes).double().mean().item(), TOKENS_BAR, True),
        report("tokens equal, reconstruct --save-tokens", (tokens == codes).double().mean().item(), TOKENS_BAR, True),
        report("stats, max abs difference", (ours["stats"] - stats).abs().max().item(), OUTPUT_BAR),
        report("pixels, max abs difference", (ours["reconstruction"] - reconstruction).abs().max().item(), OUTPUT_BAR),
        check_export(bin_dir, folder, {f"{side}.{name}": value
                                       for side, module in (("encoder", encoder), ("decoder", decoder))
                                       for name, value in module.state_dict().items()}),
    ])


if __name__ == "__main__":
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as scratch:
        build = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parents[2] / "build/release")
        sys.exit(0 if main(build / "bin", Path(scratch)) else 1)
