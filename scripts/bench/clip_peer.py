#!/usr/bin/env python3
"""Times CLIP ViT-B/32 scoring by open_clip and clip-anytorch (PyPI), batch 32: what dalle-bench clip-score is compared with.

Random weights, pictures and captions to the cosine of each pair, in inference mode. clip-anytorch has QuickGELU whatever the config; pure_bf16 is open_clip's own setting with
weights and activations in bf16. One JSON line per form, with the fields of dalle-bench."""
import contextlib

import torch

import peer_harness

BATCH = 32
ENDS = {"vit_b32_b32": 20, "vit_b32_b32_quickgelu": 20, "vit_b32_b32_full_text": 76}  # slot of the captions' end


def make_model(package, config):
    quick = config.endswith("_quickgelu")
    if package == "open_clip":
        import open_clip
        return open_clip.create_model("ViT-B-32-quickgelu" if quick else "ViT-B-32", pretrained=None).eval()
    from clip.model import CLIP
    return CLIP(512, 224, 12, 768, 32, 77, 49408, 512, 8, 12).eval()


def make_step(config, package, precision, compiled):
    torch.manual_seed(1)
    pixels, ids = torch.rand(BATCH, 3, 224, 224), torch.randint(1, 49405, (BATCH, 77))
    end = ENDS[config]
    ids[:, end] = 49407
    ids[:, end + 1:] = 0
    model = make_model(package, config)
    if precision == "pure_bf16":
        model, pixels = model.to(torch.bfloat16), pixels.to(torch.bfloat16)
    mode = torch.autocast("cpu", torch.bfloat16) if precision == "autocast" else contextlib.nullcontext()

    def cosines():
        image, text = model.encode_image(pixels), model.encode_text(ids)
        return (torch.nn.functional.normalize(image, dim=-1) * torch.nn.functional.normalize(text, dim=-1)).sum(-1)

    compute = torch.compile(cosines) if compiled else cosines

    def step():
        with torch.inference_mode(), mode:
            return compute()

    return step, BATCH


FORMS = {f"{package}.{precision}{'_compiled' if compiled else ''}": (package, precision, compiled)
         for package, precision in (("open_clip", "f32"), ("open_clip", "autocast"), ("open_clip", "pure_bf16"),
                                    ("clip-anytorch", "f32"), ("clip-anytorch", "autocast"))
         for compiled in (False, True)}


def main():
    peer_harness.run(__doc__, "clip_score", "pairs/s", "", FORMS, make_step,
                     ["open_clip.f32", "open_clip.autocast", "open_clip.pure_bf16"])


if __name__ == "__main__":
    main()
