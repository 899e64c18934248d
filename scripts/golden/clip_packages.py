"""What the published CLIP packages (clip-anytorch, open-clip-torch; PyPI) give, at a tiny size, for tests/text, tests/data and
tests/interop.

clip_bpe/vocabulary.txt.gz   a vocabulary in the published file's form, its merges counted here on the captions below
clip_bpe/ids.tsv             caption, TAB, ids by open_clip's SimpleTokenizer with that vocabulary. \\t and \\n stand for themselves
clip_packages/openai.pt      a TorchScript archive as OpenAI's are: traced, half precision, of clip-anytorch's CLIP
clip_packages.safetensors    unit features of both packages, of open_clip's with GELU, and of models without one layer norm each;
                             pictures through the packages' preprocessing
"""

import collections
import gzip
import sys
import tarfile
import warnings
from pathlib import Path

sys.path.append(sys.path.pop(0))  # else clip.py of this folder hides the package
import clip.clip  # noqa: E402
import clip.model  # noqa: E402
import open_clip.model
import regex
import torch
from open_clip.tokenizer import SimpleTokenizer, bytes_to_unicode
from open_clip.transform import image_transform
from PIL import Image

from common import GOLDEN_DIR, Random, save

SEED, MERGES = 20210105, 120
IMAGE, PATCH, CONTEXT, EMBED = 32, 8, 12, 16
VISION = {"layers": 1, "width": 128}  # two heads
TEXT = {"layers": 1, "width": 64}
CAPTIONS = [
    "a photo of a cat", "A Photo of a DOG!", "the dog's bone, they're here; I'll've I'd I'M don't", "", " ", "!!!",
    "caf\u00e9 \u00c9COLE na\u00efve \u00fcber stra\u00dfe \u0130stanbul I\u011eDIR", "\u039f\u0394\u039f\u03a3 \u03a3\u0391\u03a3 \u03c3",
    "\u043a\u0440\u0430\u0441\u043d\u044b\u0439 \u043c\u044f\u0447 \u041d\u0410 \u0422\u0420\u0410\u0412\u0415", "\u718a\u732b\u5403\u7af9\u5b50 \u65e5\u672c\u8a9e\u306e\u30c6\u30ad\u30b9\u30c8 \ud55c\uad6d\uc5b4",
    "\U0001f600 smile \U0001f468\u200d\U0001f469\u200d\U0001f467 family \U0001f1eb\U0001f1f7", "3 cats, 14.5 dogs \u00bd \u2167 \u0664 x\u00b2",
    "Tom &amp; Jerry &lt;3 &#233;t&eacute; &#xe9; &amp;lt; &copy 2020 &notit; &nosuch; &#0; &#x80; &#11; &#1114112; &",
    "tabs\tand\nlines \u00a0\u2003\u3000 here \x1c\x1d", "e\u0301te\u0301 x\u0301 \u201cDon\u2019t\u201d \uff26\uff35\ufb01 \u0939\u093f\u0928\u094d\u0926\u0940 \u0627\u0644\u0639\u0631\u0628\u064a\u0629 \u0e44\u0e17\u0e22",
    "<start_of_tex and 's 't 'S '\u017f", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "supercalifragilisticexpialidocious " * 4,
]


def emoji_captions(name: str, count: int) -> list[str]:
    """Captions of data/emoji, no two the same."""
    out = []
    with tarfile.open(GOLDEN_DIR.parents[1] / "data" / "emoji" / name) as tar:
        for member in tar:
            if member.name.endswith(".txt"):
                out += filter(None, tar.extractfile(member).read().decode().split("\n"))
    return list(dict.fromkeys(out))[:count]


def count_merges(captions: list[str]) -> list[tuple[str, str]]:
    """Byte-pair encoding's own training (Sennrich et al. 2016)."""
    alphabet = bytes_to_unicode()
    words = collections.Counter()
    for caption in captions:
        for word in regex.findall(r"\p{L}+|\p{N}|[^\s\p{L}\p{N}]+", caption.lower()):
            letters = [alphabet[byte] for byte in word.encode()]
            words[tuple(letters[:-1] + [letters[-1] + "</w>"])] += 1
    merges = []
    while len(merges) < MERGES:
        pairs = collections.Counter()
        for word, count in words.items():
            for pair in zip(word, word[1:]):
                pairs[pair] += count
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        merged = collections.Counter()
        for word, count in words.items():
            out = []
            for symbol in word:
                if out and (out[-1], symbol) == best:
                    out[-1] += symbol
                else:
                    out.append(symbol)
            merged[tuple(out)] += count
        words = merged
    return merges


def write_tokenizer(folder: Path) -> SimpleTokenizer:
    train = emoji_captions("train.tar", 400)
    lines = ["#version: 0.2"] + [" ".join(pair) for pair in count_merges(train + CAPTIONS)]
    path = folder / "vocabulary.txt.gz"
    path.write_bytes(gzip.compress("\n".join(lines).encode(), mtime=0))
    tokenizer = SimpleTokenizer(str(path), context_length=CONTEXT)
    with open(folder / "ids.tsv", "w", encoding="utf-8", newline="") as out:
        for caption in CAPTIONS + train[:40] + emoji_captions("val.tar", 40):
            escaped = caption.replace("\t", "\\t").replace("\n", "\\n")
            out.write(f"{escaped}\t{' '.join(map(str, tokenizer.encode(caption)))}\n")
    return tokenizer


def make_clip(random: Random, vocab: int) -> clip.model.CLIP:
    """Every parameter random, and large enough that no part can be left out unseen."""
    model = clip.model.CLIP(EMBED, IMAGE, VISION["layers"], VISION["width"], PATCH, CONTEXT, vocab, TEXT["width"], 1,
                            TEXT["layers"]).eval()
    for name, parameter in model.named_parameters():
        if name == "logit_scale":
            continue
        std = 0.3 if parameter.dim() < 2 else 1.5 / parameter[0].numel() ** 0.5
        parameter.data = random.normal(*parameter.shape, std=std, mean=1.0 if ".ln_" in name and "weight" in name else 0.0).float()
    clip.model.convert_weights(model)
    return model


def open_clip_of(state: dict[str, torch.Tensor], vocab: int, quick_gelu: bool) -> open_clip.model.CLIP:
    model = open_clip.model.CLIP(EMBED, {"image_size": IMAGE, "patch_size": PATCH, **VISION},
                                 {"context_length": CONTEXT, "vocab_size": vocab, "heads": 1, **TEXT}, quick_gelu=quick_gelu)
    model.load_state_dict({name: value.float() for name, value in state.items()})
    return model.eval()


def unit(features: torch.Tensor) -> torch.Tensor:
    return features / features.norm(dim=-1, keepdim=True)


@torch.no_grad()
def main() -> None:
    folder = GOLDEN_DIR / "clip_packages"
    folder.mkdir(exist_ok=True)
    (GOLDEN_DIR / "clip_bpe").mkdir(exist_ok=True)
    tokenizer = write_tokenizer(GOLDEN_DIR / "clip_bpe")
    random = Random(SEED)
    half = make_clip(random, tokenizer.vocab_size)
    pixels = random.uniform(3, 3, IMAGE, IMAGE).float()
    ids = tokenizer(["a flag of japan", "", CAPTIONS[-1]])
    warnings.simplefilter("ignore")  # TorchScript is deprecated; OpenAI's files are such archives
    torch.jit.save(torch.jit.trace(half, (pixels, ids), check_trace=False), folder / "openai.pt")

    state = {name: value.clone() for name, value in half.state_dict().items()}
    out = {"pixels": pixels * 0.25 + 0.4, "ids": ids}
    openai = clip.model.build_model(dict(state)).float()
    seen = (out["pixels"] - torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)) / torch.tensor(
        [0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    out["openai.image"], out["openai.text"] = unit(openai.encode_image(seen)), unit(openai.encode_text(ids))
    for name, quick in (("open_clip_quick", True), ("open_clip_gelu", False)):
        model = open_clip_of(state, tokenizer.vocab_size, quick)
        out[f"{name}.image"] = model.encode_image(seen, normalize=True)
        out[f"{name}.text"] = model.encode_text(ids, normalize=True)
    for name, place in (("ln_pre", openai.visual), ("ln_post", openai.visual), ("ln_final", openai)):
        kept = getattr(place, name)
        setattr(place, name, torch.nn.Identity())
        out[f"without_{name}.image"], out[f"without_{name}.text"] = unit(openai.encode_image(seen)), unit(openai.encode_text(ids))
        setattr(place, name, kept)

    for height, width in ((50, 37), (33, 90), (32, 32), (20, 27), (300, 41)):
        raw = torch.rand(1, 3, 2 + height // 8, 2 + width // 8, generator=random.generator)
        smooth = torch.nn.functional.interpolate(raw, (height, width), mode="bilinear")
        noise = torch.rand(1, 3, height, width, generator=random.generator)
        picture = ((0.8 * smooth + 0.2 * noise)[0] * 255).round().byte().permute(1, 2, 0)
        seen_by = [transform(Image.fromarray(picture.numpy())) for transform in (clip.clip._transform(IMAGE),
                                                                               image_transform(IMAGE, is_train=False))]
        assert torch.equal(*seen_by)
        name = f"{height}x{width}"
        out[f"picture.{name}"], out[f"seen.{name}"] = picture, seen_by[0]
    save("clip_packages", out, SEED)
    print(f"openai.pt: {(folder / 'openai.pt').stat().st_size} bytes")


if __name__ == "__main__":
    main()
