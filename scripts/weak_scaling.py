#!/usr/bin/env python3
"""Weak scaling of training on CPU ranks: the demo's prior on one rank and on several, each with the same share of the batch.

  scripts/weak_scaling.py [--build build/release] [--demo demo] [--ranks 2] [--batch 16 32 64] [--steps 60] [--rounds 3]

A rank is a process of one thread on this machine; ranks talk over Gloo on the loopback. Runs of one and of several ranks take
turns. One JSON line for each batch of a rank: seconds of a step (median, with the least and the most of the rounds) and the
efficiency, the time of one rank over that of several, of which 1 would be ideal. `beside` is the time of one rank while as
many others train alone beside it: what cores that share caches and memory take from each other without a word being sent.
Needs the demo's tokenizer and dVAE (scripts/demo.sh), and as many quiet cores as ranks.
"""
import argparse
import json
import statistics
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from prior_runs import ROOT, PriorRuns


def measure(runs, options, folder, batch):
    alone, beside, together = [], [], []
    for turn in range(options.rounds):
        alone.append(runs.time(folder / f"alone-{turn}-{batch}", 1, batch, options.steps)[0])
        together.append(runs.time(folder / f"together-{turn}-{batch}", options.ranks, options.ranks * batch,
                                  options.steps)[0])
        names = [folder / f"beside-{turn}-{batch}-{i}" for i in range(options.ranks)]
        with ThreadPoolExecutor(options.ranks) as pool:
            seconds = pool.map(lambda name: runs.time(name, 1, batch, options.steps)[0], names)
            beside.append(statistics.mean(seconds))

    def figures(seconds):
        return [round(f(seconds), 4) for f in (statistics.median, min, max)]

    together_seconds = statistics.median(together)
    return {"job": "weak-scaling", "config": f"demo_prior_b{batch}", "ranks": options.ranks, "unit": "s/step",
            "alone": figures(alone), "beside": figures(beside), "together": figures(together),
            "efficiency": round(statistics.median(alone) / together_seconds, 3),
            "efficiency_of_beside": round(statistics.median(beside) / together_seconds, 3)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=Path, default=ROOT / "build/release")
    parser.add_argument("--demo", type=Path, default=ROOT / "demo", help="folder with tokenizer/ and dvae/")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--batch", type=int, nargs="+", default=[16, 32, 64], help="samples of a rank")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    runs = PriorRuns(options.build, options.demo)
    with tempfile.TemporaryDirectory() as folder:
        for batch in options.batch:
            print(json.dumps(measure(runs, options, Path(folder), batch)), flush=True)


if __name__ == "__main__":
    main()
