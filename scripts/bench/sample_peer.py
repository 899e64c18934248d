#!/usr/bin/env python3
"""Times sampling image tokens from a plain GPT of the prior's size in PyTorch: what dalle-bench sample is compared with.

Pre-norm blocks on torch's scaled_dot_product_attention over a static key/value cache of the whole sequence, one vocabulary
of text, pads and image codes with one output head, top-k draws among 256 codes by exponential noise; weights and caches in
the form's number format. A call is a text pass and a token for each cell of the grid. One JSON line per form, with the
fields of dalle-bench."""
import re

import peer_harness
import torch
from torch import nn
from torch.nn import functional

TEXT_VOCAB, IMAGE_VOCAB, TOP_K = 16384, 8192, 256


class Layer(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.attention_norm, self.mlp_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.fc, self.proj = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x, keys, values, positions, mask):
        batch, length, dim = x.shape
        q, k, v = (t.view(batch, length, self.heads, dim // self.heads).transpose(1, 2)
                   for t in self.qkv(self.attention_norm(x)).chunk(3, -1))
        keys.index_copy_(2, positions, k)
        values.index_copy_(2, positions, v)
        seen = functional.scaled_dot_product_attention(q, keys, values, attn_mask=mask)
        x = x + self.out(seen.transpose(1, 2).reshape(batch, length, dim))
        return x + self.proj(functional.gelu(self.fc(self.mlp_norm(x)), approximate="tanh"))


class PlainGpt(nn.Module):
    def __init__(self, dim, layers, heads, vocab, length):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocab, dim), nn.Embedding(length, dim)
        self.layers = nn.ModuleList(Layer(dim, heads) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, vocab, bias=False)
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, ids, positions, caches, all_positions):
        x = self.tokens(ids) + self.positions(positions)
        mask = all_positions[None, None, None, :] <= positions[None, None, :, None]
        for layer, (keys, values) in zip(self.layers, caches):
            x = layer(x, keys, values, positions, mask)
        return self.head(self.norm(x[:, -1]))


def draw(logits):
    values, ids = torch.topk(logits.float(), TOP_K)
    noise = torch.empty_like(values).exponential_(1)
    return ids.gather(-1, (torch.softmax(values, -1) / noise).argmax(-1, keepdim=True))


def sizes_of(config):
    """"small_64+16x16_b1" or "mini_1024x12_64+16x16_b8": dim, layers, heads, text, grid, batch."""
    match = re.fullmatch(r"(?:small|mini_(\d+)x(\d+))_(\d+)\+(\d+)x\d+_b(\d+)", config)
    if match is None:
        raise SystemExit(f"sample_peer.py: no sizes in the name '{config}'; dalle-bench sample lists names")
    dim, layers, text, grid, batch = match.groups()
    dim = int(dim or 256)
    return dim, int(layers or 8), max(8, dim // 64), int(text), int(grid), int(batch)


def make_call(config, dtype, compiled):
    torch.manual_seed(1)
    dim, layers, heads, text, grid, batch = sizes_of(config)
    length = text + grid * grid
    model = PlainGpt(dim, layers, heads, TEXT_VOCAB + text + IMAGE_VOCAB, length).to(dtype).eval()
    decode = torch.compile(model) if compiled else model
    prompt = torch.randint(0, TEXT_VOCAB, (batch, text))
    all_positions = torch.arange(length)

    @torch.no_grad()
    def call():
        caches = [[torch.zeros(batch, heads, length, dim // heads, dtype=dtype) for _ in range(2)] for _ in range(layers)]
        token = draw(model(prompt, all_positions[:text], caches, all_positions))
        for position in range(text, length - 1):
            token = draw(decode(token, all_positions[position:position + 1], caches, all_positions))

    return call, batch * grid * grid


FORMS = {"f32": (torch.float32, False), "bf16": (torch.bfloat16, False), "f32_compiled": (torch.float32, True),
         "bf16_compiled": (torch.bfloat16, True)}


def main():
    peer_harness.run(__doc__, "sample", "tokens/s", "plain_gpt_", FORMS, make_call, ["f32", "bf16"], rounds=3, warmup=1)


if __name__ == "__main__":
    main()
