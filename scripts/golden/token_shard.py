"""Writes tests/golden/token_set/: two token shards and their manifest, byte by byte as docs/token_shards.md says.

Needs xxhash (PyPI) and nothing of this project, so that the document, our writer and our readers are held to each other.
"""
import json
import struct
from pathlib import Path

import xxhash

FOLDER = Path(__file__).parent.parent.parent / "tests/golden/token_set"
GRID, CROPS, VOCAB, DATASET = 2, 3, 1000, 6


def codes(index: int) -> list[int]:
    return [VOCAB - 1 - (100 * index + 10 * crop + position) % VOCAB for crop in range(CROPS) for position in range(GRID**2)]


def captions(index: int) -> list[bytes]:
    return [b"" if (index, n) == (1, 0) else f"caption {n} of {index} \u00e9".encode() for n in range(index + 1)]


def ends(pieces: list[bytes]) -> list[int]:
    offsets = [0]
    for piece in pieces:
        offsets.append(offsets[-1] + len(piece))
    return offsets


def u64(numbers: list[int]) -> bytes:
    return struct.pack(f"<{len(numbers)}Q", *numbers)


def shard(first: int, end: int, indices: list[int]) -> bytes:
    tokens = b"".join(struct.pack(f"<{CROPS * GRID**2}H", *codes(index)) for index in indices)
    keys = [f"folder/key-{index}".encode() for index in indices]
    texts = [text for index in indices for text in captions(index)]
    starts = [0]
    for index in indices:
        starts.append(starts[-1] + len(captions(index)))
    header = {
        "format_version": 1, "dvae": "0123456789abcdef0123456789abcdef", "picture_size": 16, "grid_size": GRID,
        "vocab_size": VOCAB, "token_bytes": 2, "num_crops": CROPS, "seed": 7, "dataset_size": DATASET,
        "settings": {"augmentation": "stage2", "precision": "f32"}, "first_index": first, "end_index": end,
        "num_samples": len(indices), "num_captions": len(texts), "key_bytes": sum(map(len, keys)),
        "caption_bytes": sum(map(len, texts)),
    }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(32 + len(text)) % 64)
    body = text + tokens + b"\0" * (-len(tokens) % 8)
    body += u64(indices) + u64(ends(keys)) + u64(starts) + u64(ends(texts)) + b"".join(keys) + b"".join(texts)
    return b"DALLETOK" + u64([len(text)]) + xxhash.xxh3_128(body).digest() + body


FOLDER.mkdir(exist_ok=True)
entries = []
for number, content in enumerate((shard(0, 4, [0, 1, 2, 3]), shard(4, 6, [5]))):
    name = f"tokens-{number:06d}.shard"
    (FOLDER / name).write_bytes(content)
    entries.append({"name": name, "bytes": len(content), "num_samples": [4, 1][number], "xxh3_128": content[16:32].hex()})
manifest = {
    "format": "dalle-tokens", "format_version": 1,
    "dvae": {"identity": "0123456789abcdef0123456789abcdef", "path": "runs/dvae", "step": 12},
    "dataset_size": DATASET, "num_samples": 5, "num_captions": 16, "num_crops": CROPS, "shards": entries,
}
(FOLDER / "MANIFEST.json").write_text(json.dumps(manifest, indent=1) + "\n")
