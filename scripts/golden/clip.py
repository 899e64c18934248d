"""A tiny CLIP after the published architecture (Radford et al. 2021): features, contrastive loss and gradients."""

import torch
import torch.nn.functional as F

from common import Random, gradients, save
from transformer import block, block_shapes, layer_norm, quick_gelu, random_parameters

SEED = 20210226
IMAGE, PATCH, VISION_DIM, VISION_LAYERS, VISION_HEADS = 16, 8, 16, 2, 2
CONTEXT, VOCAB, TEXT_DIM, TEXT_LAYERS, TEXT_HEADS = 6, 20, 12, 2, 3
EMBED = 10
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def shapes() -> dict[str, tuple[int, ...]]:
    out = {
        "positional_embedding": (CONTEXT, TEXT_DIM), "text_projection": (TEXT_DIM, EMBED),
        "visual.class_embedding": (VISION_DIM,), "visual.proj": (VISION_DIM, EMBED),
        "visual.positional_embedding": ((IMAGE // PATCH) ** 2 + 1, VISION_DIM),
        "visual.conv1.weight": (VISION_DIM, 3, PATCH, PATCH),
        "visual.ln_pre.weight": (VISION_DIM,), "visual.ln_pre.bias": (VISION_DIM,),
        "visual.ln_post.weight": (VISION_DIM,), "visual.ln_post.bias": (VISION_DIM,),
        "token_embedding.weight": (VOCAB, TEXT_DIM),
        "ln_final.weight": (TEXT_DIM,), "ln_final.bias": (TEXT_DIM,),
    }  # fmt: skip
    for layer in range(VISION_LAYERS):
        out |= block_shapes(f"visual.transformer.resblocks.{layer}.", VISION_DIM)
    for layer in range(TEXT_LAYERS):
        out |= block_shapes(f"transformer.resblocks.{layer}.", TEXT_DIM)
    return out


def encode_image(p: dict[str, torch.Tensor], pixels: torch.Tensor) -> torch.Tensor:
    channel = lambda values: torch.tensor(values, dtype=torch.float64).view(1, 3, 1, 1)  # noqa: E731
    x = F.conv2d((pixels - channel(MEAN)) / channel(STD), p["visual.conv1.weight"], stride=PATCH)
    x = x.flatten(2).transpose(1, 2)
    x = torch.cat([p["visual.class_embedding"].expand(len(x), 1, VISION_DIM), x], 1)
    x = layer_norm(x + p["visual.positional_embedding"], p, "visual.ln_pre")
    for layer in range(VISION_LAYERS):
        x = block(x, p, f"visual.transformer.resblocks.{layer}.", VISION_HEADS, None, quick_gelu)
    return F.normalize(layer_norm(x[:, 0], p, "visual.ln_post") @ p["visual.proj"], dim=-1)


def encode_text(p: dict[str, torch.Tensor], ids: torch.Tensor) -> torch.Tensor:
    x = p["token_embedding.weight"][ids] + p["positional_embedding"]
    causal = torch.ones(CONTEXT, CONTEXT, dtype=torch.bool).tril()
    for layer in range(TEXT_LAYERS):
        x = block(x, p, f"transformer.resblocks.{layer}.", TEXT_HEADS, causal, quick_gelu)
    x = layer_norm(x, p, "ln_final")[torch.arange(len(ids)), ids.argmax(-1)]
    return F.normalize(x @ p["text_projection"], dim=-1)


if __name__ == "__main__":
    random = Random(SEED)
    p = random_parameters(random, shapes())
    p["logit_scale"] = torch.tensor(2.5, dtype=torch.float64, requires_grad=True)
    pixels = random.uniform(3, 3, IMAGE, IMAGE)
    start, end = VOCAB - 2, VOCAB - 1
    ids = torch.tensor([[start, 4, 9, end, 0, 0], [start, end, 0, 0, 0, 0], [start, 1, 2, 3, 17, end]])
    image, text = encode_image(p, pixels), encode_text(p, ids)
    logits = p["logit_scale"].exp() * image @ text.T
    labels = torch.arange(3)
    loss = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
    out = p | {"pixels": pixels, "ids": ids, "image_features": image, "text_features": text, "loss": loss}
    save("clip", out | gradients(loss, p, "grad."), SEED)
