#!/usr/bin/env python3
"""Times a training step of a plain GPT of the prior's size in PyTorch: what dalle-bench prior-train is compared with.

Pre-norm blocks on torch's scaled_dot_product_attention (dense and causal), one vocabulary of text, pads and image codes with one
output head over all positions, fused AdamW; bf16 by autocast. One JSON line per form, with the fields of dalle-bench."""
import re

import peer_harness
import torch
from torch import nn
from torch.nn import functional

TEXT_VOCAB, IMAGE_VOCAB, HEADS = 16384, 8192, 8


class Layer(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.attention_norm, self.mlp_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.fc, self.proj = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x):
        batch, length, dim = x.shape
        q, k, v = (t.view(batch, length, HEADS, dim // HEADS).transpose(1, 2)
                   for t in self.qkv(self.attention_norm(x)).chunk(3, -1))
        seen = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).reshape(batch, length, dim))
        return x + self.proj(functional.gelu(self.fc(self.mlp_norm(x)), approximate="tanh"))


class PlainGpt(nn.Module):
    def __init__(self, dim, layers, vocab, length):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocab, dim), nn.Embedding(length, dim)
        self.layers = nn.Sequential(*(Layer(dim) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, vocab, bias=False)

    def forward(self, ids, targets):
        x = self.layers(self.tokens(ids) + self.positions.weight)
        return functional.cross_entropy(self.head(self.norm(x)).flatten(0, 1).float(), targets.flatten())


def sizes_of(config):
    """"small_256+32x32_b1" or "dim512x8_64+16x16_b4": dim, layers, text, grid, batch."""
    match = re.fullmatch(r"(?:small|dim(\d+)x(\d+))_(\d+)\+(\d+)x\d+_b(\d+)", config)
    if match is None:
        raise SystemExit(f"prior_peer.py: no sizes in the name '{config}'; dalle-bench prior-train lists names")
    dim, layers, text, grid, batch = match.groups()
    return int(dim or 256), int(layers or 8), int(text), int(grid), int(batch)


def make_step(config, autocast, compiled):
    torch.manual_seed(1)
    dim, layers, text, grid, batch = sizes_of(config)
    length = text + grid * grid
    model = PlainGpt(dim, layers, TEXT_VOCAB + text + IMAGE_VOCAB, length)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    ids = torch.randint(0, TEXT_VOCAB + IMAGE_VOCAB, (batch, length + 1))
    run = torch.compile(model) if compiled else model

    def step():
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = run(ids[:, :-1].contiguous(), ids[:, 1:].contiguous())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step, batch * length


FORMS = {"f32": (False, False), "bf16": (True, False), "bf16_compiled": (True, True)}


def main():
    peer_harness.run(__doc__, "prior_train", "tokens/s", "plain_gpt_", FORMS, make_step, ["f32", "bf16"])


if __name__ == "__main__":
    main()
