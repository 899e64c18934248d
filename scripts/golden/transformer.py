"""One pre-norm transformer block through torch.nn.functional: values and gradients under a mask; cross-entropy sums."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F

from common import Random, gradients, save

SEED = 20170612
BATCH, LENGTH, DIM, HEADS = 2, 7, 16, 4


def quick_gelu(x: torch.Tensor) -> torch.Tensor:
    return x * torch.sigmoid(1.702 * x)


def block_shapes(prefix: str, dim: int, mlp_ratio: int = 4) -> dict[str, tuple[int, ...]]:
    """Parameters of a block under the names of OpenAI's CLIP state dict."""
    hidden = mlp_ratio * dim
    shapes = {
        "ln_1.weight": (dim,), "ln_1.bias": (dim,),
        "attn.in_proj_weight": (3 * dim, dim), "attn.in_proj_bias": (3 * dim,),
        "attn.out_proj.weight": (dim, dim), "attn.out_proj.bias": (dim,),
        "ln_2.weight": (dim,), "ln_2.bias": (dim,),
        "mlp.c_fc.weight": (hidden, dim), "mlp.c_fc.bias": (hidden,),
        "mlp.c_proj.weight": (dim, hidden), "mlp.c_proj.bias": (dim,),
    }  # fmt: skip
    return {prefix + name: shape for name, shape in shapes.items()}


def random_parameters(random: Random, shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """Generic values for all: no bias is 0 and no gain is 1, so that none can be forgotten unseen."""
    parameters = {}
    for name, shape in shapes.items():
        if len(shape) >= 2:
            parameters[name] = random.normal(*shape, std=1.3 / math.sqrt(math.prod(shape[1:])))
        else:
            gain = name.endswith("weight")
            parameters[name] = random.normal(*shape, std=0.2, mean=1.0 if gain else 0.0)
        parameters[name].requires_grad_()
    return parameters


def layer_norm(x: torch.Tensor, parameters: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    return F.layer_norm(x, x.shape[-1:], parameters[f"{name}.weight"], parameters[f"{name}.bias"], 1e-5)


def block(
    x: torch.Tensor,
    parameters: dict[str, torch.Tensor],
    prefix: str,
    heads: int,
    visible: torch.Tensor | None,
    activation: Callable[[torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """x [B, L, D]; visible: bool [L, L], true where the row may see the column."""
    get = lambda name: parameters[prefix + name]  # noqa: E731
    y = layer_norm(x, parameters, prefix + "ln_1").transpose(0, 1)
    y, _ = F.multi_head_attention_forward(
        y, y, y, x.shape[-1], heads, get("attn.in_proj_weight"), get("attn.in_proj_bias"), None, None, False, 0.0,
        get("attn.out_proj.weight"), get("attn.out_proj.bias"), training=False, need_weights=False,
        attn_mask=None if visible is None else ~visible,
    )  # fmt: skip
    x = x + y.transpose(0, 1)
    y = activation(F.linear(layer_norm(x, parameters, prefix + "ln_2"), get("mlp.c_fc.weight"), get("mlp.c_fc.bias")))
    return x + F.linear(y, get("mlp.c_proj.weight"), get("mlp.c_proj.bias"))


def blocks(random: Random) -> dict[str, torch.Tensor]:
    visible = (random.uniform(LENGTH, LENGTH) < 0.5) | torch.eye(LENGTH, dtype=torch.bool)
    parameters = random_parameters(random, block_shapes("resblocks.0.", DIM))
    x, weight = random.normal(BATCH, LENGTH, DIM).requires_grad_(), random.normal(BATCH, LENGTH, DIM)
    out = parameters | {"visible": visible, "input": x, "loss_weight": weight}
    activations = {"gelu": F.gelu, "quick_gelu": quick_gelu}
    for name, activation in activations.items():
        for mask_name, mask in (("masked", visible), ("open", None)):
            key = f"{name}.{mask_name}"
            out[f"{key}.output"] = block(x, parameters, "resblocks.0.", HEADS, mask, activation)
            loss = (out[f"{key}.output"] * weight).sum()
            out |= gradients(loss, parameters | {"input": x}, f"grad.{key}.")
    return out


def cross_entropy(random: Random) -> dict[str, torch.Tensor]:
    logits = random.normal(3, 5, 11, std=4.0).requires_grad_()
    targets = random.integers(11, 3, 5)
    targets[0, 1] = targets[2, 4] = -1
    each = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1, reduction="none").view(3, 5)
    out = {"ce.logits": logits, "ce.targets": targets, "ce.each": each, "ce.sum": each.sum()}
    return out | gradients(each.sum(), {"ce.logits": logits}, "grad.")


if __name__ == "__main__":
    random = Random(SEED)
    save("transformer", blocks(random) | cross_entropy(random), SEED)
