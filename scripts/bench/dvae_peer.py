#!/usr/bin/env python3
"""Times a dVAE training step of OpenAI's own code (the dall-e package) in PyTorch: what dalle-bench dvae-train is compared with.

The step is a whole one: encoder, Gumbel-softmax, decoder, logit-Laplace likelihood and KL, backward, fused AdamW. One JSON
line per form, with the fields of dalle-bench: f32, f32 in channels-last memory, bf16 autocast in channels-last memory."""
import math

import peer_harness
import torch
from dall_e import Decoder, Encoder, map_pixels
from torch.nn import functional

VOCAB = 8192
FORMS = {"f32": (False, False), "f32_nhwc": (False, True), "bf16_nhwc": (True, True)}


def make_step(config, autocast, channels_last):
    torch.manual_seed(1)
    width, pixels, batch = (int("".join(filter(str.isdigit, part))) for part in config.split("_")[1:])
    device = torch.device("cpu")
    encoder, decoder = Encoder(n_hid=width, device=device), Decoder(n_hid=width, device=device)
    images = torch.rand(batch, 3, pixels, pixels)
    if channels_last:
        encoder, decoder = (m.to(memory_format=torch.channels_last) for m in (encoder, decoder))
        images = images.contiguous(memory_format=torch.channels_last)
    parameters = [*encoder.parameters(), *decoder.parameters()]
    for parameter in parameters:
        parameter.requires_grad_()
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=1e-4, fused=True)

    def loss():
        target = map_pixels(images)
        logits = encoder(target).float()
        mean, log_scale = decoder(functional.gumbel_softmax(logits, tau=1.0, dim=1)).float().chunk(2, 1)
        log_x, log_1mx = target.log(), torch.log1p(-target)
        nll = math.log(2) + log_scale + log_x + log_1mx + (log_x - log_1mx - mean).abs() * torch.exp(-log_scale)
        log_q = functional.log_softmax(logits, 1)
        kl = (log_q.exp() * (log_q + math.log(VOCAB))).sum(1)
        return nll.mean() + kl.mean() * 6.6 / 192

    def step():
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            value = loss()
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        optimizer.step()

    return step, batch


def main():
    peer_harness.run(__doc__, "dvae_train", "images/s", "openai_", FORMS, make_step)


if __name__ == "__main__":
    main()
