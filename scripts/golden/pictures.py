"""Writes what the picture tests need from Pillow, into tests/golden:
resize.tsv   pictures resized by Pillow (antialiased bicubic and Lanczos), as the released notebook and CLIP do it. A line
             is: filter, in height, in width, out height, out width, input and output bytes (RGB, hex).
cmyk.jpg     16x16, left half CMYK red, right half CMYK blue (Adobe's inverted form, as print programs write it).
alpha.webp   16x16 lossless, left half opaque green, right half transparent.
Run by hand, with a Pillow that resizes columns first as all did when the models were published (13 does not always):
python3 -m venv V && V/bin/pip install pillow==10.4.0 && V/bin/python scripts/golden/pictures.py
"""

import pathlib
import random

from PIL import Image

OUT = pathlib.Path(__file__).resolve().parents[2] / "tests" / "golden"
CASES = [(23, 31, 8, 10), (16, 16, 8, 8), (9, 7, 20, 15), (40, 12, 13, 13)]
FILTERS = {"bicubic": Image.Resampling.BICUBIC, "lanczos": Image.Resampling.LANCZOS}


def halves(mode, left, right):
    image = Image.new(mode, (16, 16), left)
    image.paste(right, (8, 0, 16, 16))
    return image


def write_resized():
    generator = random.Random(0)
    with open(OUT / "resize.tsv", "w", encoding="ascii") as out:
        for name, resample in FILTERS.items():
            for height, width, out_height, out_width in CASES:
                pixels = generator.randbytes(3 * height * width)
                image = Image.frombytes("RGB", (width, height), pixels)
                resized = image.resize((out_width, out_height), resample)
                sizes = f"{height}\t{width}\t{out_height}\t{out_width}"
                out.write(f"{name}\t{sizes}\t{pixels.hex()}\t{resized.tobytes().hex()}\n")


def main():
    write_resized()
    halves("CMYK", (0, 255, 255, 0), (255, 255, 0, 0)).save(OUT / "cmyk.jpg", quality=95)
    halves("RGBA", (0, 255, 0, 255), (255, 0, 0, 0)).save(OUT / "alpha.webp", lossless=True, exact=True)


if __name__ == "__main__":
    main()
