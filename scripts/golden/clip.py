"""A tiny CLIP after the published architecture (Radford et al. 2021): features, contrastive loss and gradients."""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from common import Random, gradients, save
from transformer import block, block_shapes, layer_norm, quick_gelu, random_parameters

SEED = 20210226
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


class Size(NamedTuple):
    image: int
    patch: int
    vision_dim: int
    vision_layers: int
    vision_heads: int
    context: int
    vocab: int
    text_dim: int
    text_layers: int
    text_heads: int
    embed: int


TINY = Size(16, 8, 16, 2, 2, 6, 20, 12, 2, 3, 10)
VIT_B_32 = Size(224, 32, 768, 12, 12, 77, 49408, 512, 12, 8, 512)


def shapes(size: Size) -> dict[str, tuple[int, ...]]:
    vision, text = size.vision_dim, size.text_dim
    out = {
        "positional_embedding": (size.context, text), "text_projection": (text, size.embed),
        "visual.class_embedding": (vision,), "visual.proj": (vision, size.embed),
        "visual.positional_embedding": ((size.image // size.patch) ** 2 + 1, vision),
        "visual.conv1.weight": (vision, 3, size.patch, size.patch),
        "visual.ln_pre.weight": (vision,), "visual.ln_pre.bias": (vision,),
        "visual.ln_post.weight": (vision,), "visual.ln_post.bias": (vision,),
        "token_embedding.weight": (size.vocab, text),
        "ln_final.weight": (text,), "ln_final.bias": (text,),
    }  # fmt: skip
    for layer in range(size.vision_layers):
        out |= block_shapes(f"visual.transformer.resblocks.{layer}.", vision)
    for layer in range(size.text_layers):
        out |= block_shapes(f"transformer.resblocks.{layer}.", text)
    return out


def encode_image(p: dict[str, torch.Tensor], pixels: torch.Tensor) -> torch.Tensor:
    channel = lambda values: torch.tensor(values, dtype=torch.float64).view(1, 3, 1, 1)  # noqa: E731
    x = F.conv2d((pixels - channel(MEAN)) / channel(STD), p["visual.conv1.weight"], stride=TINY.patch)
    x = x.flatten(2).transpose(1, 2)
    x = torch.cat([p["visual.class_embedding"].expand(len(x), 1, TINY.vision_dim), x], 1)
    x = layer_norm(x + p["visual.positional_embedding"], p, "visual.ln_pre")
    for layer in range(TINY.vision_layers):
        x = block(x, p, f"visual.transformer.resblocks.{layer}.", TINY.vision_heads, None, quick_gelu)
    return F.normalize(layer_norm(x[:, 0], p, "visual.ln_post") @ p["visual.proj"], dim=-1)


def encode_text(p: dict[str, torch.Tensor], ids: torch.Tensor) -> torch.Tensor:
    x = p["token_embedding.weight"][ids] + p["positional_embedding"]
    causal = torch.ones(TINY.context, TINY.context, dtype=torch.bool).tril()
    for layer in range(TINY.text_layers):
        x = block(x, p, f"transformer.resblocks.{layer}.", TINY.text_heads, causal, quick_gelu)
    x = layer_norm(x, p, "ln_final")[torch.arange(len(ids)), ids.argmax(-1)]
    return F.normalize(x @ p["text_projection"], dim=-1)


if __name__ == "__main__":
    random = Random(SEED)
    p = random_parameters(random, shapes(TINY))
    p["logit_scale"] = torch.tensor(2.5, dtype=torch.float64, requires_grad=True)
    pixels = random.uniform(3, 3, TINY.image, TINY.image)
    start, end = TINY.vocab - 2, TINY.vocab - 1
    ids = torch.tensor([[start, 4, 9, end, 0, 0], [start, end, 0, 0, 0, 0], [start, 1, 2, 3, 17, end]])
    image, text = encode_image(p, pixels), encode_text(p, ids)
    logits = p["logit_scale"].exp() * image @ text.T
    labels = torch.arange(3)
    loss = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
    out = p | {"pixels": pixels, "ids": ids, "image_features": image, "text_features": text, "loss": loss}
    save("clip", out | gradients(loss, p, "grad."), SEED)
