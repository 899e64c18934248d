#!/usr/bin/env python3
"""Times DALLE-pytorch's generate_images with its cache: what dalle-bench sample is compared with.

The package's DALLE with its own defaults and a VAE of the smallest decoder; a call is a text pass, a token for each cell of the
grid and that decoder. Dense attention, or rows and columns as it has them for inference; bf16 by autocast. One JSON line per
form, with the fields of dalle-bench. sample.sh installs what it needs."""
import peer_harness
import torch
from dalle_pytorch_peer import import_package
from sample_peer import IMAGE_VOCAB, TEXT_VOCAB, sizes_of


def make_call(config, kinds, autocast):
    torch.manual_seed(1)
    package = import_package()
    dim, layers, heads, text, grid, batch = sizes_of(config)
    vae = package.DiscreteVAE(image_size=4 * grid, num_layers=2, num_tokens=IMAGE_VOCAB, hidden_dim=16)
    model = package.DALLE(dim=dim, vae=vae, num_text_tokens=TEXT_VOCAB, text_seq_len=text, depth=layers, heads=heads,
                          dim_head=dim // heads, attn_types=kinds, optimize_for_inference=len(kinds) > 1).eval()
    captions = torch.randint(1, TEXT_VOCAB, (batch, text))

    @torch.no_grad()
    def call():
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            model.generate_images(captions, use_cache=True)

    return call, batch * grid * grid


DENSE, SPARSE = ("full",), ("axial_row", "axial_col")
FORMS = {"f32": (DENSE, False), "bf16": (DENSE, True), "row_col_f32": (SPARSE, False), "row_col_bf16": (SPARSE, True)}


def main():
    peer_harness.run(__doc__, "sample", "tokens/s", "dalle_pytorch_", FORMS, make_call, ["f32", "bf16"], rounds=3, warmup=1)


if __name__ == "__main__":
    main()
