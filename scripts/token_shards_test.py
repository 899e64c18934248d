#!/usr/bin/env python3
"""Tests token_shards.py on tests/golden/token_set, which scripts/golden/token_shard.py wrote and our C++ code writes too."""
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

from token_shards import TokenError, TokenSet, TokenShard

ROOT = Path(__file__).parent.parent
GOLDEN = ROOT / "tests/golden/token_set"
INDICES = [0, 1, 2, 3, 5]  # number 4 was no picture


class TokenShardsTest(unittest.TestCase):
    def setUp(self):
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.run_dir = Path(scratch.name) / "run"
        shutil.copytree(GOLDEN, self.run_dir / "shards")

    def damage(self, name, change):
        path = self.run_dir / "shards" / name
        content = change(path.read_bytes())
        with path.open("r+b") as file:  # in place: some file systems wait for the disk where a file is truncated first
            file.write(content)
            file.truncate()
        return path

    def test_every_sample_by_random_access(self):
        tokens = TokenSet(self.run_dir)
        tokens.verify()
        self.assertEqual(len(tokens), 5)
        for sample in (4, 0, 3, 1, 2):
            index = INDICES[sample]
            self.assertEqual(tokens.key(sample), f"folder/key-{index}")
            self.assertEqual(tokens.captions(sample),
                             ["" if (index, n) == (1, 0) else f"caption {n} of {index} \u00e9" for n in range(index + 1)])
            for crop in (2, 0, 1):
                codes = tokens.codes(sample, crop)
                self.assertEqual(codes.shape, (2, 2))
                self.assertEqual(codes.flatten().tolist(), [999 - (100 * index + 10 * crop + at) for at in range(4)])
        self.assertEqual(tokens.shards[1].indices.tolist(), [5])
        self.assertEqual(tokens.shards[0].codes.shape, (4, 3, 2, 2))
        with self.assertRaises(IndexError):
            tokens.codes(5, 0)

    def test_every_cut_and_every_damaged_byte(self):
        whole = (GOLDEN / "tokens-000001.shard").read_bytes()
        for size in range(len(whole)):
            path = self.damage("tokens-000001.shard", lambda _: whole[:size])
            with self.assertRaises(TokenError, msg=size):
                TokenShard(path)
        for at in range(len(whole)):
            path = self.damage("tokens-000001.shard", lambda _: whole[:at] + bytes([whole[at] ^ 0xA5]) + whole[at + 1:])
            with self.assertRaises((TokenError, UnicodeDecodeError), msg=at):
                TokenShard(path).verify()

    def test_sets_that_are_not_whole(self):
        self.damage("tokens-000001.shard", lambda _: (GOLDEN / "tokens-000000.shard").read_bytes())
        with self.assertRaisesRegex(TokenError, "another run"):
            TokenSet(self.run_dir)
        self.damage("MANIFEST.json", lambda text: text.replace(b"dalle-tokens", b"dalle-checkpoint"))
        with self.assertRaisesRegex(TokenError, "not a token set"):
            TokenSet(self.run_dir)
        (self.run_dir / "shards/MANIFEST.json").unlink()
        with self.assertRaisesRegex(TokenError, "--resume"):
            TokenSet(self.run_dir)

    def test_command(self):
        command = [sys.executable, "-B", str(ROOT / "scripts/token_shards.py"), str(self.run_dir)]
        shown = subprocess.run([*command, "--verify", "--sample", "4"], capture_output=True, text=True, check=True).stdout
        self.assertIn("5 samples of 6, 3 crops of 2x2 tokens, 1000 codes, 2 shards; all checksums agree", shown)
        self.assertIn("folder/key-5\n  caption 0 of 5", shown)
        self.assertIn("[[479 478]\n [477 476]]", shown)
        lost = subprocess.run([*command, "--sample", "9"], capture_output=True, text=True)
        self.assertEqual((lost.returncode, lost.stderr), (1, "token_shards.py: sample 9 of 5\n"))


if __name__ == "__main__":
    unittest.main()
