"""Writes tests/golden/adamw.safetensors: weights after each of six steps of torch.optim.AdamW in float64.

"matrix" and "kernel" decay, "bias" does not; "late" decays and has no gradient in the first two steps.
"""

import torch

from common import Random, save

SEED = 20240607
LEARNING_RATES = [0.0, 1e-2, 3e-3, 3e-3, 1e-1, 1e-4]
BETAS, EPS, WEIGHT_DECAY = (0.9, 0.96), 1e-8, 4.5e-2

random = Random(SEED)
shapes = {"matrix": (3, 4), "kernel": (2, 3, 3, 3), "bias": (5,), "late": (2, 2)}
weights = {name: random.normal(*shape).requires_grad_(True) for name, shape in shapes.items()}
out = {f"start.{name}": weight.detach().clone() for name, weight in weights.items()}
out["learning_rates"] = torch.tensor(LEARNING_RATES, dtype=torch.float64)

decayed = [weights[name] for name in ("matrix", "kernel", "late")]
optimizer = torch.optim.AdamW(
    [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": [weights["bias"]], "weight_decay": 0.0}],
    lr=1.0, betas=BETAS, eps=EPS)
for step, lr in enumerate(LEARNING_RATES):
    for group in optimizer.param_groups:
        group["lr"] = lr
    for name, weight in weights.items():
        gradient = random.normal(*shapes[name], std=10.0 ** (step - 3))
        weight.grad = None if name == "late" and step < 2 else gradient
        if weight.grad is not None:
            out[f"grad.{step}.{name}"] = gradient
    optimizer.step()
    out |= {f"after.{step}.{name}": weight.detach().clone() for name, weight in weights.items()}

save("adamw", out, SEED)
