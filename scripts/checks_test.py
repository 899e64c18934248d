#!/usr/bin/env python3
"""Proves that check_layers.py and check_style.py can fail: each rule, broken in a tree of its own, is complained about."""
import tempfile
import unittest
from pathlib import Path

import check_layers
import check_style

HEADER = "// What it is for.\n#pragma once\n"


class ChecksTest(unittest.TestCase):
    def complaints(self, check, files):
        with tempfile.TemporaryDirectory() as folder:
            for name, text in files.items():
                path = Path(folder) / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
            return check(Path(folder))

    def assert_rule(self, check, path, broken, kept, expected):
        """`broken` in the file `path` gives one complaint that holds `expected`; `kept` gives none."""
        found = self.complaints(check, {path: broken})
        self.assertEqual(len(found), 1, found)
        self.assertIn(expected, found[0])
        self.assertIn(path, found[0])
        self.assertEqual(self.complaints(check, {path: kept}), [])

    def test_ranks(self):
        up, down = '#include "dalle/training/loop.h"\n', '#include "dalle/core/str.h"\n'
        self.assert_rule(check_layers.check, "src/models/a.cpp", up, down, "must not include")
        self.assert_rule(check_layers.check, "tests/models/a_test.cpp", up, down, "must not include")
        equal, own = '#include "dalle/storage/a.h"\n', '#include "dalle/text/a.h"\n'
        self.assert_rule(check_layers.check, "src/text/a.cpp", equal, own, "must not include")
        self.assert_rule(check_layers.check, "tools/a.cpp", '#include "dalle/nowhere/a.h"\n', up, "no known layer")
        self.assert_rule(check_layers.check, "src/text/a.cpp", '#include "../data/a.h"\n', '#include "a.h"\n', "same folder")
        self.assertTrue(self.complaints(check_layers.check, {"src/stray/a.cpp": ""}))

    def test_fences(self):
        outside = {"yaml-cpp/yaml.h": "src/config/a.cpp", "CLI/CLI.hpp": "src/cli/a.cpp",
                   "sentencepiece_processor.h": "src/text/a.cpp", "utf8proc.h": "src/text/a.cpp",
                   "event.pb.h": "src/training/event_record.cpp", "xxhash.h": "src/core/a.cpp", "archive.h": "src/data/a.cpp",
                   "archive_entry.h": "tests/data/a_test.cpp", "opencv2/core.hpp": "src/data/image_codec_opencv.cpp",
                   "opencv2/imgcodecs.hpp": "src/generation/picture_writer_opencv.cpp",
                   "torch/csrc/distributed/c10d/Store.hpp": "src/distributed/a.cpp", "nccl.h": "src/distributed/a.cpp",
                   "spdlog/spdlog.h": "src/core/logging.cpp", "nlohmann/json.hpp": "src/storage/a.cpp"}
        for include, inside in outside.items():
            text = f"#include <{include}>\n"
            self.assertEqual(self.complaints(check_layers.check, {inside: text}), [])
            found = self.complaints(check_layers.check, {"include/dalle/layers/a.h": text, "tests/layers/a_test.cpp": ""})
            self.assertEqual(len(found), 1, include)
        for include in ("torch/torch.h", "torch/nn/module.h", "torch/nn.h"):
            self.assertTrue(self.complaints(check_layers.check, {"src/layers/a.cpp": f"#include <{include}>\n"}))

    def test_headers_have_tests(self):
        header, excuses = {"include/dalle/core/a.h": HEADER}, "scripts/untested_headers.txt"
        test = {"tests/core/a_test.cpp": ""}
        self.assertTrue(self.complaints(check_layers.check, header))
        self.assertEqual(self.complaints(check_layers.check, {**header, **test}), [])
        self.assertEqual(self.complaints(check_layers.check, {**header, excuses: "core/a.h an alias\n"}), [])
        self.assertTrue(self.complaints(check_layers.check, {**header, excuses: "core/a.h\n"}))
        self.assertTrue(self.complaints(check_layers.check, {**header, **test, excuses: "core/a.h an alias\n"}))
        self.assertTrue(self.complaints(check_layers.check, {excuses: "core/gone.h an alias\n"}))

    def test_style(self):
        rule = lambda *arguments: self.assert_rule(check_style.check, *arguments)
        rule("src/core/a.cpp", "int a;\n" * 501, "int a;\n" * 500, "501 lines")
        rule("scripts/a.sh", ":\n" * 501, ":\n" * 500, "501 lines")
        rule("tools/a.cpp", "int main() {\n" + "  f();\n" * 59 + "}\n", "int main() {\n" + "  f();\n" * 58 + "}\n", "61 lines")
        rule("src/core/a.cpp", "// TO" + "DO: more\n", "// more\n", "unfinished")
        rule("include/dalle/core/a.h", HEADER + "using namespace std;\n", HEADER + "// using namespace std\n", "using namespace")
        rule("include/dalle/core/a.h", "#pragma once\n", HEADER, "purpose")
        rule("include/dalle/core/a.h", "// A.\n", HEADER, "pragma once")
        rule("src/core/a.cpp", "std::cout << 1;\n", "std::snprintf(a, b);\n", "printing")
        rule("src/core/a.cpp", "printf(a);\n", "// printf(a);\n", "printing")
        rule("docs/a.md", "see /ho" + "me/me/x\n", "see docs/work/x and https://a.org/home\n", "absolute path")
        self.assertEqual(self.complaints(check_style.check, {"src/cli/a.cpp": "std::cout << 1;\n"}), [])


if __name__ == "__main__":
    unittest.main()
