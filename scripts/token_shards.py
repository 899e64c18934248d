#!/usr/bin/env python3
"""Reads what encode-images wrote (docs/token_shards.md). Needs numpy only.

    from token_shards import TokenSet
    tokens = TokenSet("runs/encode")     # a run directory or its shards/
    tokens.codes(17, crop=0)             # array [grid_size, grid_size]
    tokens.captions(17), tokens.key(17)

token_shards.py FOLDER [--verify] [--sample I] prints what a folder holds. --verify compares checksums; it takes the package
xxhash, or libxxhash where that is installed.
"""
import argparse
import bisect
import ctypes.util
import functools
import json
from pathlib import Path

import numpy as np

MAGIC, VERSION = b"DALLETOK", 1


class TokenError(Exception):
    """A file that is damaged, unfinished or of another kind."""


class _Digest(ctypes.Structure):
    _fields_ = [("low", ctypes.c_uint64), ("high", ctypes.c_uint64)]


@functools.cache
def _libxxhash():
    name = ctypes.util.find_library("xxhash")
    if name is None:
        raise TokenError("checksums need the Python package xxhash, or libxxhash; or compare by hand: "
                         "tail -c +33 FILE | xxhsum -H2 -")
    function = ctypes.CDLL(name).XXH3_128bits
    function.restype, function.argtypes = _Digest, [ctypes.c_void_p, ctypes.c_size_t]
    return function


def xxh3_128(data):
    """32 digits, as `xxhsum -H2` prints them, over an array of bytes."""
    try:
        import xxhash
        return xxhash.xxh3_128_hexdigest(data)
    except ImportError:
        digest = _libxxhash()(data.ctypes.data, data.size)
        return f"{digest.high:016x}{digest.low:016x}"


class TokenShard:
    """One file, mapped into memory: `codes` is an array [samples, crops, grid, grid], `indices` an array [samples]."""

    def __init__(self, path):
        self.path = Path(path)
        size = self.path.stat().st_size
        self._check(size >= 32, "at least 32 bytes", size)
        self.bytes = np.memmap(self.path, np.uint8, "r")
        prefix = self.bytes[:32].tobytes()
        length = int.from_bytes(prefix[8:16], "little")
        self._check(prefix.startswith(MAGIC), f"a file that begins with {MAGIC.decode()}", prefix[:8])
        self._check(length <= min(size - 32, 1 << 20), "a header within the file", length)
        try:
            self.header = header = json.loads(self.bytes[32:32 + length].tobytes())
            counts = [header[name] for name in ("num_samples", "num_crops", "grid_size", "num_captions", "key_bytes",
                                                "caption_bytes", "token_bytes", "vocab_size")]
        except (ValueError, KeyError, TypeError) as error:
            raise TokenError(f"{self.path}: its header cannot be read: {error}") from error
        self._check(header.get("format_version") == VERSION, f"format version {VERSION}", header.get("format_version"))
        self._check(all(type(n) is int and 0 <= n < 1 << 48 for n in counts), "counts >= 0", counts)
        samples, crops, grid, captions, key_bytes, caption_bytes, token_bytes, vocab = counts
        self._check(token_bytes == (2 if vocab <= 65536 else 4), "token_bytes as the vocabulary needs", token_bytes)

        self._next = 32 + length
        self._end = size
        self.codes = self._take(samples * crops * grid * grid, f"<u{token_bytes}").reshape(samples, crops, grid, grid)
        self._next += -(samples * crops * grid * grid * token_bytes) % 8
        self.indices = self._take(samples, "<u8")
        self._key_offsets = self._take(samples + 1, "<u8")
        self._caption_starts = self._take(samples + 1, "<u8")
        self._caption_offsets = self._take(captions + 1, "<u8")
        self._keys = self._take(key_bytes, "u1")
        self._captions = self._take(caption_bytes, "u1")
        self._check(self._next == size, f"{self._next} bytes, as its header says", size)
        self.checksum = prefix[16:].hex()

    def _check(self, condition, expected, got):
        if not condition:
            raise TokenError(f"{self.path}: expected {expected}, got {got}")

    def _take(self, count, dtype):
        start, self._next = self._next, self._next + count * np.dtype(dtype).itemsize
        self._check(self._next <= self._end, "sections within the file", f"{self._next} of {self._end} bytes")
        return np.frombuffer(self.bytes, dtype, count, start)

    def _text(self, section, offsets, number):
        begin, end = int(offsets[number]), int(offsets[number + 1])
        self._check(begin <= end <= len(section), "offsets that rise within their section", (begin, end))
        return section[begin:end].tobytes().decode()

    def __len__(self):
        return len(self.indices)

    def key(self, sample):
        return self._text(self._keys, self._key_offsets, sample)

    def captions(self, sample):
        first, last = int(self._caption_starts[sample]), int(self._caption_starts[sample + 1])
        self._check(first <= last < len(self._caption_offsets), "caption starts that rise", (first, last))
        return [self._text(self._captions, self._caption_offsets, n) for n in range(first, last)]

    def verify(self):
        """Reads everything; raises TokenError where it is not as it was written."""
        digest = xxh3_128(self.bytes[32:])
        self._check(digest == self.checksum, f"checksum {self.checksum}", digest)
        self._check(self.codes.size == 0 or self.codes.max() < self.header["vocab_size"], "codes within the vocabulary",
                    "others")
        for sample in range(len(self)):
            self.key(sample), self.captions(sample)


class TokenSet:
    """All shards of a finished run as one list of samples."""

    def __init__(self, folder):
        folder = Path(folder)
        self.folder = folder if (folder / "MANIFEST.json").exists() else folder / "shards"
        path = self.folder / "MANIFEST.json"
        if not path.exists():
            raise TokenError(f"{folder}: no MANIFEST.json; continue the run with encode-images --run-dir RUN --resume")
        self.manifest = json.loads(path.read_text())
        if (self.manifest.get("format"), self.manifest.get("format_version")) != ("dalle-tokens", VERSION):
            raise TokenError(f"{path}: not a token set of version {VERSION}")
        self.shards, self._starts = [], [0]
        for entry in self.manifest["shards"]:
            shard = TokenShard(self.folder / Path(entry["name"]).name)
            if shard.checksum != entry["xxh3_128"]:
                raise TokenError(f"{shard.path}: a shard of another run: its checksum is not the manifest's")
            self.shards.append(shard)
            self._starts.append(self._starts[-1] + len(shard))

    def __len__(self):
        return self._starts[-1]

    def _locate(self, sample):
        if not 0 <= sample < len(self):
            raise IndexError(f"sample {sample} of {len(self)}")
        number = bisect.bisect_right(self._starts, sample) - 1
        return self.shards[number], sample - self._starts[number]

    def codes(self, sample, crop):
        shard, inner = self._locate(sample)
        return shard.codes[inner, crop]

    def captions(self, sample):
        shard, inner = self._locate(sample)
        return shard.captions(inner)

    def key(self, sample):
        shard, inner = self._locate(sample)
        return shard.key(inner)

    def verify(self):
        for shard in self.shards:
            shard.verify()


def main():
    parser = argparse.ArgumentParser(description="Print what encode-images wrote.")
    parser.add_argument("folder", help="run directory of encode-images, or its shards/")
    parser.add_argument("--verify", action="store_true", help="read everything and compare checksums")
    parser.add_argument("--sample", type=int, metavar="I", help="print key, captions and codes of sample I")
    arguments = parser.parse_args()
    try:
        tokens = TokenSet(arguments.folder)
        if arguments.verify:
            tokens.verify()
        header = tokens.shards[0].header
        print(f"{len(tokens)} samples of {header['dataset_size']}, {header['num_crops']} crops of {header['grid_size']}x"
              f"{header['grid_size']} tokens, {header['vocab_size']} codes, {len(tokens.shards)} shards"
              + ("; all checksums agree" if arguments.verify else ""))
        print(f"dVAE {header['dvae']}, seed {header['seed']}, "
              + ", ".join(f"{name} {value}" for name, value in header["settings"].items()))
        if arguments.sample is not None:
            print(f"sample {arguments.sample}: {tokens.key(arguments.sample)}")
            for caption in tokens.captions(arguments.sample):
                print(f"  {caption}")
            for crop in range(header["num_crops"]):
                print(f"crop {crop}:\n{tokens.codes(arguments.sample, crop)}")
    except (TokenError, IndexError, OSError) as error:
        raise SystemExit(f"token_shards.py: {error}")


if __name__ == "__main__":
    main()
