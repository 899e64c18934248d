"""Our CLIP beside the packages clip-anytorch and open-clip-torch (PyPI) at the published sizes, through import-weights.

    scripts/parity/run.sh clip_packages [BUILD_DIR [SIZE...]]     (build/release, all sizes)

The packages make ViT-B/32, B/16 and L/14 with random weights: clip-anytorch's are saved as TorchScript archives, as OpenAI's
files are, open_clip's as state dicts and safetensors. `import-weights` reads them, `clip-outputs` (tests/integration) gives
features that no printing has rounded, `score-images` its cosines of PNG files. Tokens: 10,000 captions in many scripts whose
decoding ftfy does not repair. Prints a line for each figure with its bar; exits with 1 where one is missed. 10 GB of disk, 8 GB of
memory, about 15 minutes on two cores.
"""

import json
import random
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import clip.model
import clip.clip
import ftfy
import open_clip
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

SEED, BATCH, CAPTIONS = 0, 4, 10_000
FEATURES_BAR, PIXELS_BAR, COSINES_BAR = 1e-5, 1 / 255, 1e-3
SIZES = {  # name: (embed, patch, vision width, vision layers, text width)
    "ViT-B-32": (512, 32, 768, 12, 512), "ViT-B-16": (512, 16, 768, 12, 512), "ViT-L-14": (768, 14, 1024, 24, 768)}
WORDS = (
    "a the of photo picture painting red small dog cat house tree isn't they're she'll I've 12 3.50 2021 #1 @home it's & "
    "caf\u00e9 na\u00efve \u00fcber stra\u00dfe \u00c9COLE cr\u00e8me br\u00fbl\u00e9e \u0141\u00f3d\u017a \u0130stanbul I\u011eDIR \u0111\u01b0\u1eddng ph\u1ed1 "
    "\u043a\u0440\u0430\u0441\u043d\u044b\u0439 \u041c\u042f\u0427 \u0434\u043e\u043c \u0451\u043b\u043a\u0430 \u0457\u0436\u0430\u043a \u03a3\u03af\u03c3\u03c5\u03c6\u03bf\u03c2 \u039f\u0394\u039f\u03a3 \u718a\u732b \u5403 \u7af9\u5b50 \u65e5\u672c\u8a9e\u306e \u30c6\u30ad\u30b9\u30c8 \ud55c\uad6d\uc5b4 \ud3ec\uc2a4\ud130 "
    "\u0627\u0644\u0639\u0631\u0628\u064a\u0629 \u05e2\u05d1\u05e8\u05d9\u05ea \u0939\u093f\u0928\u094d\u0926\u0940 \u0e44\u0e17\u0e22 \u10e5\u10d0\u10e0\u10d7\u10e3\u10da\u10d8 \u00bd \u2167 \u00b2 \u0664\u0665 \u20ac5 100% \u2014 \u2026 \u2122 "
    "\U0001f600 \U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1eb\U0001f1f7 \U0001f44d\U0001f3fd \u2764\ufe0f &amp; &lt;3 &eacute; &#233; &amp;quot; !!! ... (ok) <b> e\u0301 \u00a0 \u3000 ' 's "
    "\u201cquoted\u201d \u2018x\u2019 don\u2019t \uff46\uff55\uff4c\uff4c \ufb01ne &rdquo; &nbsp; &frac12; n\u0303 \u30ab\u3099 \u01c6 \ufeff "
    "supercalifragilisticexpialidocious HTML5 C++ \u2603 \u2192").split(" ")


RANGES = ("az", "az", "az", "AZ", "\u00c0\u024f", "\u0370\u03ff", "\u0400\u04ff", "\u05d0\u05ea", "\u0620\u064a", "\u0904\u0939",
          "\u0e01\u0e2e", "\u10d0\u10fa", "\u1e00\u1eff", "\u2010\u2027", "\u20a0\u20bf", "\u2100\u214f", "\u2150\u2189",
          "\u2190\u22ff", "\u2460\u24ff", "\u2600\u27bf", "\u3041\u3096", "\u30a1\u30fa", "\u4e00\u9fff", "\uac00\ud7a3",
          "\U0001f300\U0001f64f", "\U0001f680\U0001f6c5", "\U0001f900\U0001f9ff")


def invented_word(draw: random.Random) -> str:
    """1 to 12 characters of one script."""
    low, high = map(ord, draw.choice(RANGES))
    return "".join(chr(draw.randint(low, high)) for _ in range(draw.randint(1, 12)))


def run(bin_dir: Path, command: str, *arguments: object) -> None:
    begin = time.time()
    subprocess.run([bin_dir / command, *map(str, arguments)], check=True, stdout=subprocess.DEVNULL,
                   stderr=subprocess.DEVNULL)
    print(f"  {command}: {time.time() - begin:.1f} s", flush=True)


def report(name: str, value: float, bar: float) -> bool:
    print(f"{name}: {value:.3g} (bar: <= {bar:.3g}) {'ok' if value <= bar else 'MISSED'}", flush=True)
    return value <= bar


def captions() -> list[str]:
    """Different captions that ftfy takes to be decoded rightly, no line breaks; some longer than CLIP's 77 slots, one empty.
    No names of references in capitals, which ftfy guesses at ("&EACUTE;")."""
    draw, out = random.Random(SEED), {"": None}
    while len(out) < CAPTIONS:
        words = [draw.choice(WORDS) if draw.random() < 0.5 else invented_word(draw)
                 for _ in range(draw.choice((1, 2, 3, 4, 6, 12, 40)))]
        glue = draw.choice((" ", " ", " ", "", "  "))
        caption = glue.join(word.upper() if "&" not in word and draw.random() < 0.1 else word for word in words)
        if ftfy.fix_text(caption, fix_encoding=False) == ftfy.fix_text(caption):
            out[caption] = None
    return list(out)


def pictures(generator: torch.Generator) -> dict[str, torch.Tensor]:
    """u8 [H, W, 3], smooth with noise: wide, tall, square, smaller than 224 and equal."""
    out = {}
    for height, width in ((480, 640), (333, 250), (224, 224), (150, 97), (1000, 1001), (224, 300)):
        coarse = torch.rand(1, 3, 2 + height // 24, 2 + width // 24, generator=generator)
        smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
        noise = torch.rand(1, 3, height, width, generator=generator)
        out[f"{height}x{width}"] = ((0.8 * smooth + 0.2 * noise)[0] * 255).round().byte().permute(1, 2, 0).contiguous()
    return out


def randomized(model: torch.nn.Module, generator: torch.Generator) -> torch.nn.Module:
    """Biases and gains off their 0 and 1, and larger weights: no part could be left out unseen."""
    for name, parameter in model.named_parameters():
        if name == "logit_scale":
            continue
        noise = torch.randn(parameter.shape, generator=generator)
        gain = ".ln_" in f".{name}" and name.endswith("weight")
        parameter.data = 1 + 0.2 * noise if gain else 0.2 * noise if parameter.dim() == 1 else parameter.data * 1.5
    return model.eval()


def unit(features: torch.Tensor) -> torch.Tensor:
    return features / features.norm(dim=-1, keepdim=True)


def save_openai(size: str, generator: torch.Generator, path: Path) -> torch.nn.Module:
    """A TorchScript archive with f16 weights; returns what clip.load makes of such a file on a CPU."""
    embed, patch, width, layers, text_width = SIZES[size]
    model = randomized(clip.model.CLIP(embed, 224, layers, width, patch, 77, 49408, text_width, text_width // 64, 12), generator)
    clip.model.convert_weights(model)
    example = torch.zeros(1, 3, 224, 224), torch.zeros(1, 77, dtype=torch.long)
    torch.jit.save(torch.jit.trace(model, example, check_trace=False), path)
    return clip.clip.load(str(path), device="cpu")[0]


def save_open_clip(name: str, generator: torch.Generator, path: Path) -> torch.nn.Module:
    model = randomized(open_clip.create_model(name, pretrained=None), generator)
    if path.suffix == ".safetensors":
        save_file(model.state_dict(), path)
    else:  # as its training saves
        torch.save({"epoch": 1, "state_dict": {f"module.{key}": value for key, value in model.state_dict().items()}}, path)
    return model


def check_model(name: str, bin_dir: Path, folder: Path, model: torch.nn.Module, arguments: list, inputs: dict) -> bool:
    run(bin_dir, "import-weights", *arguments, "--tokenizer", open_clip.tokenizer.default_bpe(), "--out", folder / "clip")
    save_file(inputs, folder / "in.safetensors")
    run(bin_dir, "clip-outputs", folder / "clip", folder / "in.safetensors", folder / "out.safetensors")
    ours = load_file(folder / "out.safetensors")
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD))
    image = unit(model.encode_image((inputs["pixels"] - mean) / std))
    text = unit(model.encode_text(inputs["ids"]))
    print(f"  theirs: the first two pictures differ by {(image[0] - image[1]).abs().max():.2g}, the first two captions by "
          f"{(text[0] - text[1]).abs().max():.2g}")
    return all([report(f"{name}: image features, max abs difference", (ours["image"] - image).abs().max().item(), FEATURES_BAR),
                report(f"{name}: text features, max abs difference", (ours["text"] - text).abs().max().item(), FEATURES_BAR)])


def check_tokens(bin_dir: Path, folder: Path) -> bool:
    texts = captions()
    (folder / "captions.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
    save_file({"none": torch.zeros(1)}, folder / "none.safetensors")
    run(bin_dir, "clip-outputs", folder / "clip", folder / "none.safetensors", folder / "out.safetensors", folder / "captions.txt")
    ours = load_file(folder / "out.safetensors")["tokens"]
    good = True
    for package, theirs in (("open_clip", open_clip.tokenize(texts)), ("clip-anytorch", clip.clip.tokenize(texts, truncate=True))):
        different = (ours != theirs).any(1)
        for index in different.nonzero()[:5, 0].tolist():
            print(f"  differs: {texts[index]!r}")
        good &= report(f"tokens of {len(texts)} captions, {package}: captions that differ", different.sum().item(), 0)
    full = (theirs[:, -1] != 0).sum().item()
    print(f"  {full} of the captions fill all 77 slots; {len(set(theirs.flatten().tolist()))} different tokens")
    return good


def check_pictures(bin_dir: Path, folder: Path, model: torch.nn.Module, shapes: dict) -> bool:
    transform, texts = clip.clip._transform(224), ["a photo of a dog", "caf\u00e9 \u718a\u732b"]
    save_file({f"picture.{name}": value for name, value in shapes.items()}, folder / "in.safetensors")
    run(bin_dir, "clip-outputs", folder / "clip", folder / "in.safetensors", folder / "out.safetensors")
    ours = load_file(folder / "out.safetensors")
    std = torch.tensor(open_clip.OPENAI_DATASET_STD).view(3, 1, 1)
    seen = {name: transform(Image.fromarray(value.numpy())) for name, value in shapes.items()}
    worst = max(((ours[f"seen.{name}"] - value) * std).abs().max().item() for name, value in seen.items())
    good = report(f"preprocessing of {len(seen)} pictures, max difference of a channel in [0, 1]", worst, PIXELS_BAR + 1e-6)
    files = []
    for name, value in shapes.items():
        files.append(folder / f"{name}.png")
        Image.fromarray(value.numpy()).save(files[-1])
    run(bin_dir, "score-images", *files, "--clip", folder / "clip", "--caption", texts[0], "--caption", texts[1], "--json",
        folder / "scores.json", "--precision", "f32")
    cosines = unit(model.encode_text(open_clip.tokenize(texts))) @ unit(model.encode_image(torch.stack(list(seen.values())))).T
    scores, names = json.loads((folder / "scores.json").read_text()), [str(file) for file in files]
    worst = max(abs(row["cosine"] - cosines[i, names.index(row["file"])].item())
                for i, entry in enumerate(scores["captions"]) for row in entry["images"])
    return good & report("score-images of PNG files, max difference of a cosine (one level of a pixel included)", worst,
                         COSINES_BAR)


@torch.no_grad()
def main(bin_dir: Path, only: list[str]) -> bool:
    warnings.simplefilter("ignore")  # TorchScript is deprecated; OpenAI's files are such archives
    generator = torch.Generator().manual_seed(SEED)
    torch.manual_seed(SEED)
    inputs = {"pixels": torch.rand(BATCH, 3, 224, 224, generator=generator),
              "ids": open_clip.tokenize(["a photo of a dog", "", "\u718a\u732b \U0001f600 caf\u00e9", "long " * 100])}
    good = True
    for size in SIZES:
        for kind, file in (("openai-clip", "x.pt"), ("open-clip", "x.safetensors"), ("open-clip --quick-gelu", "x.pt")):
            if only and size not in only:
                continue
            with tempfile.TemporaryDirectory() as scratch:
                folder = Path(scratch)
                if kind == "openai-clip":
                    model = save_openai(size, generator, folder / file)
                else:
                    model = save_open_clip(size + ("-quickgelu" if "quick" in kind else ""), generator, folder / file)
                good &= check_model(f"{kind} {size}", bin_dir, folder, model, [kind.split()[0], folder / file, *kind.split()[1:]],
                                    inputs)
                if (size, kind) == ("ViT-B-32", "openai-clip"):
                    good &= check_tokens(bin_dir, folder)
                    good &= check_pictures(bin_dir, folder, model, pictures(generator))
    return good


if __name__ == "__main__":
    torch.set_num_threads(2)
    build = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parents[2] / "build/release")
    sys.exit(0 if main(build / "bin", sys.argv[2:]) else 1)
