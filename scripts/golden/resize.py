"""Writes tests/golden/resize.tsv: pictures resized by Pillow (antialiased bicubic and Lanczos), as the released notebook
and CLIP do it. A line is: filter, in height, in width, out height, out width, input and output bytes (RGB, hex).
Run by hand: python3 -m venv V && V/bin/pip install pillow && V/bin/python scripts/golden/resize.py
"""

import pathlib
import random

from PIL import Image

OUT = pathlib.Path(__file__).resolve().parents[2] / "tests" / "golden" / "resize.tsv"
CASES = [(23, 31, 8, 10), (16, 16, 8, 8), (9, 7, 20, 15), (40, 12, 13, 13)]
FILTERS = {"bicubic": Image.Resampling.BICUBIC, "lanczos": Image.Resampling.LANCZOS}


def main():
    generator = random.Random(0)
    with open(OUT, "w", encoding="ascii") as out:
        for name, resample in FILTERS.items():
            for height, width, out_height, out_width in CASES:
                pixels = generator.randbytes(3 * height * width)
                image = Image.frombytes("RGB", (width, height), pixels)
                resized = image.resize((out_width, out_height), resample)
                out.write(f"{name}\t{height}\t{width}\t{out_height}\t{out_width}\t{pixels.hex()}\t{resized.tobytes().hex()}\n")


if __name__ == "__main__":
    main()
