"""A tiny prior, written after the definition of its stream (paper 2.2, B.1) with masks as loops over cells.

Text slot 0 is start-of-text, text slot k holds caption token k - 1 or the pad embedding of the position; image slot 0 is
start-of-image, image slot j holds image token j - 1. Image slot j stands at the cell it predicts.
"""

import torch
import torch.nn.functional as F

from common import Random, gradients, save
from transformer import block, block_shapes, layer_norm, random_parameters

SEED = 20210223
TEXT, TEXT_VOCAB, GRID, IMAGE_VOCAB = 5, 11, 4, 13
DIM, HEADS, LAYERS, KERNEL = 16, 2, 3, 5
PAD = -1
ORDERS = {
    "full": ["full"] * 3, "row": ["row"] * 3, "column": ["column"] * 3, "conv": ["conv"] * 3,
    "paper": ["row", "column", "conv"],
}  # fmt: skip


def image_visible(kind: str, query: int, key: int) -> bool:
    """May image slot `query` see image slot `key`?"""
    if key > query:
        return False
    if kind == "full":
        return True
    if kind == "row":
        return query - key <= GRID
    if kind == "column":
        return query % GRID == key % GRID
    half = KERNEL // 2
    window = {rows * GRID + columns for rows in range(1, half + 1) for columns in range(-half, half + 1)}
    return query - key in window | set(range(half + 1))  # edges as the raster order continues


def visible(kind: str) -> torch.Tensor:
    length = TEXT + GRID * GRID
    mask = torch.zeros(length, length, dtype=torch.bool)
    for query in range(length):
        for key in range(query + 1):
            if key < TEXT:
                mask[query, key] = True
            else:
                mask[query, key] = image_visible(kind, query - TEXT, key - TEXT)
    return mask


def shapes() -> dict[str, tuple[int, ...]]:
    out = {
        "text_embedding.weight": (TEXT_VOCAB, DIM), "text_pad_embedding.weight": (TEXT, DIM),
        "text_position_embedding.weight": (TEXT, DIM), "image_embedding.weight": (IMAGE_VOCAB, DIM),
        "image_row_embedding.weight": (GRID, DIM), "image_column_embedding.weight": (GRID, DIM),
        "start_embedding.weight": (2, DIM),
    }  # fmt: skip
    for layer in range(LAYERS):
        out |= block_shapes(f"transformer.resblocks.{layer}.", DIM)
    return out | {
        "ln_final.weight": (DIM,), "ln_final.bias": (DIM,),
        "text_head.weight": (TEXT_VOCAB, DIM), "text_head.bias": (TEXT_VOCAB,),
        "image_head.weight": (IMAGE_VOCAB, DIM), "image_head.bias": (IMAGE_VOCAB,),
    }  # fmt: skip


def embed(p: dict[str, torch.Tensor], caption: list[int], image: list[int]) -> torch.Tensor:
    """One stream [T + I, D]."""
    slots = []
    for k in range(TEXT):
        if k == 0:
            content = p["start_embedding.weight"][0]
        elif caption[k - 1] == PAD:
            content = p["text_pad_embedding.weight"][k]
        else:
            content = p["text_embedding.weight"][caption[k - 1]]
        slots.append(content + p["text_position_embedding.weight"][k])
    for j in range(GRID * GRID):
        content = p["start_embedding.weight"][1] if j == 0 else p["image_embedding.weight"][image[j - 1]]
        row, column = divmod(j, GRID)
        slots.append(content + p["image_row_embedding.weight"][row] + p["image_column_embedding.weight"][column])
    return torch.stack(slots)


def forward(p, captions, images, kinds: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.stack([embed(p, c.tolist(), i.tolist()) for c, i in zip(captions, images)])
    for layer, kind in enumerate(kinds):
        x = block(x, p, f"transformer.resblocks.{layer}.", HEADS, visible(kind), F.gelu)
    x = layer_norm(x, p, "ln_final")
    text = F.linear(x[:, : TEXT - 1], p["text_head.weight"], p["text_head.bias"])
    image = F.linear(x[:, TEXT:], p["image_head.weight"], p["image_head.bias"])
    return text, image


if __name__ == "__main__":
    random = Random(SEED)
    p = random_parameters(random, shapes())
    captions = torch.tensor([[3, 7, 1, 10], [5, 2, PAD, PAD], [PAD] * 4])
    images = random.integers(IMAGE_VOCAB, 3, GRID * GRID)
    out = p | {"captions": captions, "images": images}
    for order, kinds in ORDERS.items():
        text, image = forward(p, captions, images, kinds)
        text_loss = F.cross_entropy(text.flatten(0, 1), captions.flatten(), ignore_index=PAD)
        image_loss = F.cross_entropy(image.flatten(0, 1), images.flatten())
        out |= {f"{order}.text_logits": text, f"{order}.image_logits": image}
        out |= {f"{order}.text_loss": text_loss, f"{order}.image_loss": image_loss}
        if order in ("full", "paper"):
            out |= gradients(text_loss / 8 + image_loss * 7 / 8, p, f"grad.{order}.")
    save("prior", out, SEED)
