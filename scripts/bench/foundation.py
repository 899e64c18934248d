#!/usr/bin/env python3
"""Trains the prior of this project's first complete demo (32x32 pixels, 8x8 tokens) by that state of the code and by today's.

  scripts/bench/foundation.py [--steps 3800] [--learning-rate 1e-3] [--rounds 1] [--threads 2] [--work .cache/foundation]
                              [--build build/release]

The first demo had 3,800 steps, at a learning rate of up to 2e-3, for an image loss of at most 0.03 nats on training captions;
today's program has --steps and a largest learning rate of its own, with the same pictures, tokenizer, dVAE, model and batch.
Both runs take turns; compared are the seconds of the whole command and the loss at its end. Exit code 1 where today's misses
0.03, the first one's loss, or half the first one's time.
The old code is built in --work from this repository's history, with its tokenizer and dVAE trained there, once.
"""
import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COMMIT = "804a8d9e0cdd1c94ef1ba3bf5e8034ae7da15d9c"
MOST_LOSS = 0.03
MOST_TIME = 0.5


def run(command, folder=ROOT, log=None):
    with open(log or os.devnull, "ab") as output:
        done = subprocess.run([str(part) for part in command], cwd=folder, stdout=output, stderr=subprocess.STDOUT)
    if done.returncode != 0:
        sys.exit(f"foundation.py: {' '.join(map(str, command))} ended with {done.returncode}"
                 f"{f', see {log}' if log else ''}")


def build_old(work):
    """The old programs and their configs, in work/source."""
    source = work / "source"
    if not source.exists():
        unpacked = work / "source.new"
        shutil.rmtree(unpacked, ignore_errors=True)
        unpacked.mkdir(parents=True)
        archive = work / "source.tar"
        run(["git", "archive", "-o", archive, COMMIT])
        run(["tar", "xf", archive, "-C", unpacked])
        (unpacked / ".venv").symlink_to(ROOT / ".venv")
        unpacked.rename(source)
    log = work / "build.log"
    run(["cmake", "--preset", "release", "-Wno-dev"], source, log)
    run(["cmake", "--build", "--preset", "release", "--target", "train-tokenizer", "train-dvae", "train-prior"], source, log)
    return source


def train_once(source, name, command, threads):
    """A stage of the old demo; it goes on where it was interrupted."""
    folder = source / "demo" / name
    done = source / "demo" / f"{name}.done"
    if done.exists():
        return
    done.parent.mkdir(exist_ok=True)
    resume = ["--resume"] if (folder / "checkpoints/latest").exists() else []
    if not resume:
        shutil.rmtree(folder, ignore_errors=True)
    run([source / "build/release/bin" / command, f"configs/demo/{name}.yaml", "--run-dir", folder, "--threads", threads,
         *resume], source, source.parent / f"{name}.log")
    done.touch()


def train_prior(program, source, folder, threads, settings):
    """Seconds of the whole command, and the last loss of images on training captions."""
    shutil.rmtree(folder, ignore_errors=True)
    given = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    begin = time.monotonic()
    run([program, source / "configs/demo/prior.yaml", "--run-dir", folder, "--threads", threads, "--device", "cpu", *given],
        source, folder.with_suffix(".log"))
    seconds = time.monotonic() - begin
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return seconds, [line["train_image_loss"] for line in lines if line["phase"] == "validation"][-1]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3800, help="of today's run")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="the largest of today's run")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, default=ROOT / ".cache/foundation")
    parser.add_argument("--build", type=Path, default=ROOT / "build/release")
    options = parser.parse_args()
    work = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    source = build_old(work)
    train_once(source, "tokenizer", "train-tokenizer", options.threads)
    train_once(source, "dvae", "train-dvae", options.threads)
    today = {"trainer.num_steps": options.steps, "learning_rate.steps": options.steps - 50,
               "learning_rate.start": options.learning_rate, "learning_rate.end": options.learning_rate / 50}
    shares, reached = [], True
    for turn in range(options.rounds):
        old = train_prior(source / "build/release/bin/train-prior", source, work / f"first-{turn}", options.threads, {})
        new = train_prior(options.build.resolve() / "bin/train-prior", source, work / f"today-{turn}", options.threads,
                          today)
        for name, (seconds, loss) in (("first", old), ("today", new)):
            print(f"{name}: {seconds:.1f} s, image loss on training captions {loss:.4f}", flush=True)
        shares.append(new[0] / old[0])
        reached = reached and new[1] <= min(old[1], MOST_LOSS)
    share = statistics.median(shares)
    print(f"today's {options.steps} steps take {share:.2f} of the time of the first demo's 3,800")
    sys.exit(0 if share <= MOST_TIME and reached else 1)


if __name__ == "__main__":
    main()
