#!/usr/bin/env python3
"""Times a training step of DALLE-pytorch's model in the paper's order: what dalle-bench prior-train is compared with.

The package's DALLE with its own defaults (rotary embeddings, shifted tokens, gated MLP), attention by row, column, row, row
and so on and the convolution in the last layer, fused AdamW; bf16 by autocast. One JSON line per form, with the fields of
dalle-bench. stage2.sh installs what it needs."""
import sys
import types

import peer_harness
import torch
from prior_peer import HEADS, IMAGE_VOCAB, TEXT_VOCAB, sizes_of


def import_package():
    """The package without its module of pretrained VAEs, whose own requirements no longer build; nothing here uses it."""
    vaes = types.ModuleType("dalle_pytorch.vae")
    vaes.OpenAIDiscreteVAE = vaes.VQGanVAE = type("NotImported", (torch.nn.Module,), {})
    sys.modules["dalle_pytorch.vae"] = vaes
    import dalle_pytorch
    return dalle_pytorch


def paper_order(layers):
    return tuple((["axial_row", "axial_col", "axial_row", "axial_row"] * layers)[:layers - 1] + ["conv_like"])


def make_step(config, autocast, compiled):
    torch.manual_seed(1)
    package = import_package()
    dim, layers, text, grid, batch = sizes_of(config)
    vae = package.DiscreteVAE(image_size=4 * grid, num_layers=2, num_tokens=IMAGE_VOCAB, hidden_dim=16)  # gives the grid
    model = package.DALLE(dim=dim, vae=vae, num_text_tokens=TEXT_VOCAB, text_seq_len=text, depth=layers, heads=HEADS,
                          dim_head=dim // HEADS, attn_types=paper_order(layers))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, fused=True)
    captions, tokens = torch.randint(1, TEXT_VOCAB, (batch, text)), torch.randint(0, IMAGE_VOCAB, (batch, grid * grid))
    run = torch.compile(model) if compiled else model

    def step():
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = run(captions, tokens, return_loss=True)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step, batch * (text + grid * grid)


FORMS = {"f32": (False, False), "bf16": (True, False), "f32_compiled": (False, True), "bf16_compiled": (True, True)}


def main():
    peer_harness.run(__doc__, "prior_train", "tokens/s", "dalle_pytorch_", FORMS, make_step)


if __name__ == "__main__":
    main()
