#!/usr/bin/env python3
"""Holds the style rules that clang-format cannot: check_style.py [ROOT]

No file over 500 lines, no function over 60 lines in tools/, every header with a purpose comment and #pragma once, no
`using namespace` at file scope in headers, no printing outside cli and tools, no notes of unfinished work, no paths of
one machine.
"""
import re
import sys
from pathlib import Path

TOPS = ("include", "src", "tests", "tools", "scripts", "cmake", "configs", "docs", ".ci")
CODE = (".h", ".cpp", ".cu", ".cuh", ".py", ".sh", ".cmake")
TEXT = CODE + (".md", ".yaml", ".json", ".txt")
MAX_FILE_LINES = 500
MAX_TOOL_FUNCTION_LINES = 60
# Where printing is allowed: besides cli and tools, the bodies of commands whose results go to stdout.
PRINTERS = ("src/cli/", "tools/", "src/generation/reconstruct_job.cpp", "src/generation/score_images_job.cpp",
            "src/models/inspect.cpp", "src/training/bench.cpp", "src/training/demo_report.cpp",
            "src/training/encode_job.cpp", "src/training/plan_run.cpp", "src/training/run_stage.cpp",
            "src/training/tokenizer_run.cpp")
UNFINISHED = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|X" + r"XX)\b")
MACHINE_PATH = re.compile(r"(?<![\w.~}*-])/(home|root|work|Users)/\w")
PRINTING = re.compile(r"\bstd::(cout|cerr|clog)\b|\b(std::)?(f?printf|puts|fputs)\s*\(")


def long_functions(lines):
    """(first line, length) of functions longer than allowed, in clang-formatted code: they end with } in column 0."""
    start = None
    for number, line in enumerate(lines, 1):
        if start is None:
            if re.match(r"[A-Za-z\[]", line) and not re.match(r"(namespace|using|extern)\b", line):
                start = number
        if start is not None and line.startswith("}"):
            if number - start + 1 > MAX_TOOL_FUNCTION_LINES:
                yield start, number - start + 1
            start = None
        elif start is not None and line.rstrip().endswith(";") and not any(
                "{" in earlier for earlier in lines[start - 1:number]):
            start = None  # a declaration


def check_line(path, line):
    """What is wrong with one line, or None."""
    source = path.suffix in (".h", ".cpp", ".cu", ".cuh")
    code = re.sub(r"//.*", "", line) if source else line
    if UNFINISHED.search(line):
        return "unfinished work belongs into an issue, not into the code"
    if MACHINE_PATH.search(line):
        return "absolute path of one machine"
    if path.suffix == ".h" and re.match(r"using\s+namespace\b", code):
        return "using namespace at file scope in a header"
    if source and not path.as_posix().startswith(PRINTERS) and PRINTING.search(code):
        return "printing belongs to the files listed in PRINTERS; elsewhere use core/logging.h"
    return None


def check_file(root, path):
    lines = (root / path).read_text().splitlines()
    if (path.suffix in CODE or path.name == "CMakeLists.txt") and len(lines) > MAX_FILE_LINES:
        yield f"{path}: {len(lines)} lines, at most {MAX_FILE_LINES} are allowed"
    if path.suffix == ".h":
        if not lines or not lines[0].startswith("//"):
            yield f"{path}:1: a header opens with a comment that says its purpose"
        if "#pragma once" not in lines:
            yield f"{path}: no #pragma once"
    if path.parts[0] == "tools" and path.suffix == ".cpp":
        for start, length in long_functions(lines):
            yield f"{path}:{start}: function of {length} lines, at most {MAX_TOOL_FUNCTION_LINES} are allowed in tools/"
    for number, line in enumerate(lines, 1):
        if problem := check_line(path, line):
            yield f"{path}:{number}: {problem}"


def check(root):
    """All complaints about the tree under `root`."""
    paths = [p for top in TOPS for p in (root / top).rglob("*")] + list(root.glob("*"))
    files = sorted(p.relative_to(root) for p in paths if p.is_file() and p.suffix in TEXT)
    return [complaint for path in files for complaint in check_file(root, path)]


if __name__ == "__main__":
    found = check(Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent.parent))
    print("\n".join(found) or "style: no complaints")
    sys.exit(1 if found else 0)
