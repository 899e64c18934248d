#!/usr/bin/env python3
"""Holds the layers of docs/architecture.md: check_layers.py [ROOT]

A file includes its own layer or one of lower rank; equal ranks do not see each other. Third-party libraries stay behind
their fences. Every public header has a test file, or a line with the reason in scripts/untested_headers.txt.
"""
import re
import sys
from pathlib import Path

RANKS = {"core": 0, "config": 1, "cli": 2, "text": 2, "storage": 2, "distributed": 2, "layers": 2,
         "models": 3, "data": 3, "optim": 3, "generation": 4, "interop": 4, "evaluation": 5, "training": 6,
         "tools": 7, "integration": 7}
# Includes that start so, and the places that may have them. "src/x/" stands for tests/x/ too.
FENCES = [
    (r"yaml-cpp/", ["src/config/"]),
    (r"CLI/", ["src/cli/"]),
    (r"sentencepiece|utf8proc|unicode/|zlib", ["src/text/"]),
    (r"google/protobuf/|.*\.pb\.h", ["src/training/event_record.cpp"]),
    (r"xxhash", ["src/core/"]),
    (r"opencv2?/", ["src/data/image_codec_opencv.cpp", "src/generation/picture_writer_opencv.cpp"]),
    (r"archive(_entry)?\.h", ["src/data/"]),
    (r"torch/csrc/distributed/|nccl\.h|gloo/", ["src/distributed/"]),
    (r"spdlog/|fmt/", ["src/core/logging.cpp"]),
    (r"nlohmann/", ["src/", "tools/"]),
    (r"gtest/|gmock/", ["tests/"]),
    (r"torch/(torch|all|nn|optim|data)(\.h|/)", []),
]
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', re.MULTILINE)


def layer_of(path):
    """The layer that a file of ours belongs to; None for tests/support, which every test may use."""
    parts = path.parts
    if parts[0] == "tools":
        return "tools"
    layer = parts[2] if parts[:2] == ("include", "dalle") else parts[1]
    return None if layer == "support" else layer


def check_include(path, quote, name):
    """What is wrong with one include of one file, or None."""
    layer = layer_of(path)
    if name.startswith("dalle/"):
        target = name.split("/")[1]
        if target not in RANKS:
            return f"{name} is of no known layer"
        if layer and target != layer and RANKS[target] >= RANKS[layer]:
            return f"{layer} (rank {RANKS[layer]}) must not include {name} (rank {RANKS[target]})"
    elif quote == '"' and "/" in name and not (path.parts[0] == "tests" and name.startswith(("support/", f"{layer}/"))):
        return f'"{name}" is neither dalle/... nor a file of the same folder'
    where = path.as_posix()
    fenced_place = re.sub(r"^tests/", "src/", where)
    for pattern, allowed in FENCES:
        if re.match(pattern, name) and not any(place.startswith(a) for a in allowed for place in (where, fenced_place)):
            return f"{name} may be included only in {' and '.join(allowed) or 'no file'}"
    return None


def check_tests_of_headers(root):
    excuses_file = root / "scripts/untested_headers.txt"
    lines = excuses_file.read_text().splitlines() if excuses_file.exists() else []
    excuses = dict((line.split(None, 1) + [""])[:2] for line in lines if line and not line.startswith("#"))
    headers = {p.relative_to(root / "include/dalle").as_posix() for p in root.glob("include/dalle/*/*.h")}
    for header in sorted(headers | set(excuses)):
        tested = (root / "tests" / header.replace(".h", "_test.cpp")).exists()
        if header not in headers:
            yield f"scripts/untested_headers.txt: {header} does not exist"
        elif header in excuses and tested:
            yield f"scripts/untested_headers.txt: {header} has a test now"
        elif header in excuses and not excuses[header]:
            yield f"scripts/untested_headers.txt: {header} has no reason"
        elif header not in excuses and not tested:
            yield f"include/dalle/{header}: no tests/{header.replace('.h', '_test.cpp')}"


def check(root):
    """All complaints about the tree under `root`."""
    complaints = list(check_tests_of_headers(root))
    for top in ("include", "src", "tests", "tools"):
        for path in sorted((root / top).rglob("*")):
            if path.suffix not in (".h", ".cpp", ".cu", ".cuh"):
                continue
            relative = path.relative_to(root)
            if layer_of(relative) not in RANKS and layer_of(relative) is not None:
                complaints.append(f"{relative}: in no known layer")
                continue
            for quote, name in INCLUDE.findall(path.read_text()):
                if problem := check_include(relative, quote, name):
                    complaints.append(f"{relative}: {problem}")
    return complaints


if __name__ == "__main__":
    found = check(Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent.parent))
    print("\n".join(found) or "layers: no complaints")
    sys.exit(1 if found else 0)
