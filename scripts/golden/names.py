"""Lists of parameter names and shapes: the dVAE at paper size from the `dall-e` package, CLIP at ViT-B/32, a tiny prior."""

import math

from clip import VIT_B_32
from clip import shapes as clip_shapes
from common import GOLDEN_DIR
from dvae import release
from prior import shapes as prior_shapes


def write(name: str, shapes: dict[str, tuple[int, ...]]) -> None:
    path = GOLDEN_DIR / f"{name}_parameters.txt"
    path.write_text("".join(" ".join([key, *map(str, shape)]) + "\n" for key, shape in sorted(shapes.items())))
    print(f"{path.name}: {len(shapes)} names, {sum(map(math.prod, shapes.values()))} parameters")


if __name__ == "__main__":
    encoder, decoder = release(device="meta")
    write("dvae", {
        f"{side}.{name}": tuple(value.shape)
        for side, module in (("encoder", encoder), ("decoder", decoder))
        for name, value in module.state_dict().items()
    })  # fmt: skip
    write("clip", clip_shapes(VIT_B_32) | {"logit_scale": ()})
    write("prior", prior_shapes())
