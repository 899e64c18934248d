"""The tiny prior of prior.py with its options on: sandwich norm, query-key norm, tied heads, pads in the text loss."""

import math

import torch
import torch.nn.functional as F

from common import Random, gradients, save
from prior import DIM, GRID, HEADS, IMAGE_VOCAB, LAYERS, ORDERS, PAD, TEXT, TEXT_VOCAB, embed, shapes, visible
from transformer import layer_norm, quick_gelu, random_parameters

SEED = 20210527


def option_shapes() -> dict[str, tuple[int, ...]]:
    out = shapes()
    del out["text_head.weight"], out["image_head.weight"]
    out["text_head.bias"] = (TEXT_VOCAB + TEXT,)
    for layer in range(LAYERS):
        for name, size in (("attn.q_norm", DIM // HEADS), ("attn.k_norm", DIM // HEADS), ("ln_1_post", DIM), ("ln_2_post", DIM)):
            out |= {f"transformer.resblocks.{layer}.{name}.{part}": (size,) for part in ("weight", "bias")}
    return out


def block(x: torch.Tensor, p: dict[str, torch.Tensor], prefix: str, mask: torch.Tensor) -> torch.Tensor:
    linear = lambda y, name: F.linear(y, p[f"{prefix}{name}.weight"], p[f"{prefix}{name}.bias"])  # noqa: E731
    norm = lambda y, name: layer_norm(y, p, prefix + name)  # noqa: E731
    qkv = F.linear(norm(x, "ln_1"), p[prefix + "attn.in_proj_weight"], p[prefix + "attn.in_proj_bias"])
    heads = [part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in qkv.chunk(3, dim=-1)]
    q, k = norm(heads[0], "attn.q_norm"), norm(heads[1], "attn.k_norm")
    scores = (q @ k.transpose(2, 3) / math.sqrt(DIM // HEADS)).masked_fill(~mask, -math.inf)
    seen = (scores.softmax(-1) @ heads[2]).transpose(1, 2).flatten(2)
    x = x + norm(linear(seen, "attn.out_proj"), "ln_1_post")
    hidden = quick_gelu(linear(norm(x, "ln_2"), "mlp.c_fc"))
    return x + norm(linear(hidden, "mlp.c_proj"), "ln_2_post")


if __name__ == "__main__":
    random = Random(SEED)
    p = random_parameters(random, option_shapes())
    captions = torch.tensor([[3, 7, 1, 10], [5, 2, PAD, PAD], [PAD] * 4])
    images = random.integers(IMAGE_VOCAB, 3, GRID * GRID)
    x = torch.stack([embed(p, c.tolist(), i.tolist()) for c, i in zip(captions, images)])
    for layer, kind in enumerate(ORDERS["paper"]):
        x = block(x, p, f"transformer.resblocks.{layer}.", visible(kind))
    x = layer_norm(x, p, "ln_final")
    table = torch.cat([p["text_embedding.weight"], p["text_pad_embedding.weight"]])  # a pad's id: TEXT_VOCAB + its slot
    text = F.linear(x[:, : TEXT - 1], table, p["text_head.bias"])
    image = F.linear(x[:, TEXT:], p["image_embedding.weight"], p["image_head.bias"])
    targets = torch.where(captions == PAD, TEXT_VOCAB + torch.arange(1, TEXT), captions)
    loss = F.cross_entropy(text.flatten(0, 1), targets.flatten()) / 8 + F.cross_entropy(image.flatten(0, 1), images.flatten()) * 7 / 8
    out = p | {"captions": captions, "images": images, "text_logits": text, "image_logits": image, "loss": loss}
    save("prior_options", out | gradients(loss, p, "grad."), SEED)
