"""Encoder and decoder of the `dall-e` package (PyPI, OpenAI's release) at a small width: values and gradients.

Also the relaxation, KL and likelihood written out from the paper (2.1, A.2, A.3), and the full loss through both halves.
The package computes in float32 whatever it is given, so its part of the file is f32 as well.
"""

import math
import sys
import types

import attr
import torch

from common import Random, gradients, save

sys.modules.setdefault("requests", types.ModuleType("requests"))  # the package imports it for downloads only
from dall_e.decoder import Decoder  # noqa: E402
from dall_e.encoder import Encoder  # noqa: E402
from dall_e.utils import map_pixels  # noqa: E402

SEED = 20210224
HIDDEN, INIT, VOCAB, IMAGE = 8, 8, 16, 32
GRID = IMAGE // 8
TEMPERATURE, KL_WEIGHT = 0.7, 6.6


def release(hidden: int = 256, init: int = 128, vocab: int = 8192, device: str = "cpu"):
    """The package's encoder and decoder."""
    attr.set_run_validators(False)  # its lower bounds on widths
    device = torch.device(device)
    return (
        Encoder(n_hid=hidden, vocab_size=vocab, device=device),
        Decoder(n_hid=hidden, n_init=init, vocab_size=vocab, device=device),
    )


def build(random: Random) -> tuple[torch.nn.Module, torch.nn.Module]:
    encoder, decoder = release(HIDDEN, INIT, VOCAB)
    for module in (encoder, decoder):
        for name, parameter in module.named_parameters():
            if name.endswith(".w"):
                std = 1.5 / math.sqrt(parameter[0].numel())
            else:
                std = 0.2  # the release starts biases at 0, which would hide a missing one
            parameter.data = random.normal(*parameter.shape, std=std).float()
        assert all(part.post_gain == 1 / 64 for part in module.modules() if hasattr(part, "post_gain"))
    return encoder, decoder


def named(module: torch.nn.Module, prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + name: parameter for name, parameter in module.named_parameters()}


def halves(random: Random, encoder, decoder) -> dict[str, torch.Tensor]:
    """Each half alone, with loss = sum(output * loss_weight)."""
    pixels = random.uniform(2, 3, IMAGE, IMAGE).float()
    mapped = map_pixels(pixels).requires_grad_()
    codes = torch.softmax(random.normal(2, VOCAB, GRID, GRID, std=2.0), 1).float().requires_grad_()
    out = {"pixels": pixels, "encoder.input": mapped, "decoder.input": codes}
    for side, module, x in (("encoder", encoder, mapped), ("decoder", decoder, codes)):
        output = module(x)
        weight = random.normal(*output.shape).float()
        wanted = named(module, f"{side}.") | {f"{side}.input": x}
        out |= {f"{side}.output": output, f"{side}.loss_weight": weight}
        out |= gradients((output * weight).sum(), wanted, "grad.")
    return out


def relax(logits: torch.Tensor, gumbel: torch.Tensor, temperature: float) -> torch.Tensor:
    return torch.softmax((logits + gumbel) / temperature, 1)


def kl(logits: torch.Tensor) -> torch.Tensor:
    log_p = torch.log_softmax(logits, 1)
    return (log_p.exp() * log_p).sum(1) + math.log(logits.shape[1])


def nll(x: torch.Tensor, mu: torch.Tensor, log_b: torch.Tensor) -> torch.Tensor:
    return math.log(2) + log_b + torch.log(x) + torch.log1p(-x) + (torch.logit(x) - mu).abs() * torch.exp(-log_b)


def losses(random: Random) -> dict[str, torch.Tensor]:
    """Relaxation, KL and likelihood alone, in float64."""
    logits = random.normal(2, VOCAB, 3, 5, std=3.0).requires_grad_()
    noise, weight = random.gumbel(2, VOCAB, 3, 5), random.normal(2, VOCAB, 3, 5)
    out = {"logits": logits, "gumbel": noise, "relax.loss_weight": weight}
    for name, temperature in (("1", 1.0), ("0.3", 0.3), ("0.0625", 0.0625)):
        sample = relax(logits, noise, temperature)
        out[f"relax.{name}"] = sample
        out |= gradients((sample * weight).sum(), {"logits": logits}, f"grad.relax.{name}.")
    divergence = kl(logits)
    out["kl"] = divergence
    out |= gradients((divergence * weight[:, 0]).sum(), {"logits": logits}, "grad.kl.")
    x = random.uniform(2, 3, 4, 4, low=0.1, high=0.9)
    mu, log_b = random.normal(2, 3, 4, 4).requires_grad_(), random.normal(2, 3, 4, 4).requires_grad_()
    value = nll(x, mu, log_b)
    out |= {"x": x, "mu": mu, "log_b": log_b, "nll": value}
    out |= gradients(value.sum(), {"mu": mu, "log_b": log_b}, "grad.nll.")
    return out


def full(random: Random, encoder, decoder, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
    """(sum -ln f + KL_WEIGHT * sum KL) / (3 S^2), mean over the batch, through encoder, relaxation and decoder."""
    x = map_pixels(pixels)
    logits = encoder(x)
    noise = random.gumbel(*logits.shape).float()
    stats = decoder(relax(logits, noise, TEMPERATURE))
    reconstruction = nll(x, stats[:, :3], stats[:, 3:]).sum() / pixels.numel()
    divergence = kl(logits).sum() / pixels.numel()
    loss = reconstruction + KL_WEIGHT * divergence
    out = {"full.gumbel": noise, "full.loss": loss, "full.reconstruction": reconstruction, "full.kl": divergence}
    return out | gradients(loss, named(encoder, "encoder.") | named(decoder, "decoder."), "grad.full.")


if __name__ == "__main__":
    random = Random(SEED)
    encoder, decoder = build(random)
    both = named(encoder, "encoder.") | named(decoder, "decoder.")
    values = halves(random, encoder, decoder)
    save("dvae", both | values, SEED)
    save("dvae_loss", losses(random) | full(random, encoder, decoder, values["pixels"]), SEED)
