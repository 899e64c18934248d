#!/usr/bin/env python3
"""Compares the step time that plan-run predicts for two ranks with that of a real run of two ranks over Gloo.

  scripts/plan_check.py [--build build/release] [--demo demo] [--batch 16] [--steps 60] [--rounds 3] [--keep FOLDER]

Needs the demo's tokenizer and dVAE (scripts/demo.sh). One rank is one thread. Runs of one rank tell how fast this machine
computes, alone and with another such run beside it, since cores share caches and memory, of which the simulation knows
nothing; the self-test that a run of two ranks begins with tells how fast it sends. Both go into a device description,
with which plan-run predicts the run of two. All kinds of run take turns; each figure is the median over rounds, its spread
in brackets. On a machine with other work the figures mean little.
"""
import argparse
import re
import statistics
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from prior_runs import ROOT, PriorRuns, run, shown

TIMES = {"s": 1, "ms": 1e-3, "us": 1e-6, "ks": 1e3}


def predicted(options, folder, ranks, device):
    """The plan of the config that the run of so many ranks was given."""
    path = folder / "device.yaml"
    path.write_text("".join(f"{key}: {value}\n" for key, value in device.items()))
    config = folder / ("one-0" if ranks == 1 else "two-0") / "config.yaml"
    text = run([options.build / "bin/plan-run", config, "--device", path, "--devices", ranks])
    seconds, unit = re.search(r"a step takes ([\d.]+) (\w+)", text).groups()
    return float(seconds) * TIMES[unit]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=Path, default=ROOT / "build/release")
    parser.add_argument("--demo", type=Path, default=ROOT / "demo", help="folder with tokenizer/ and dvae/")
    parser.add_argument("--batch", type=int, default=16, help="samples of a rank")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--keep", type=Path, help="where runs are kept")
    options = parser.parse_args()
    options.build = options.build.resolve()
    runs = PriorRuns(options.build, options.demo)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        one, beside, two, bandwidths = [], [], [], []
        for turn in range(options.rounds):
            one.append(runs.time(folder / f"one-{turn}", 1, options.batch, options.steps)[0])
            with ThreadPoolExecutor() as pool:
                pair = pool.map(lambda i: runs.time(folder / f"pair-{turn}-{i}", 1, options.batch, options.steps)[0],
                                range(2))
                beside.append(statistics.mean(pair))
            seconds, log = runs.time(folder / f"two-{turn}", 2, 2 * options.batch, options.steps)
            two.append(seconds)
            bandwidths.append(float(re.search(r"all-reduce of .* bus bandwidth ([\d.]+) GB/s", log).group(1)))
        # t = a / share + b, from two shares.
        device = {"name": "this machine", "f32_flops": 2.5e11, "bf16_flops": 1e12, "memory_bandwidth": 12.8e9,
                  "devices_per_machine": 2, "link_bandwidth": statistics.median(bandwidths) * 1e9,
                  "link_latency_seconds": 0}
        at = {share: predicted(options, folder, 1, {**device, "achievable_share": share})
              for share in (0.02, 0.05)}
        a = (at[0.02] - at[0.05]) / (1 / 0.02 - 1 / 0.05)
        b = at[0.05] - a / 0.05
        plans = {}
        for name, times in (("alone", one), ("beside another", beside)):
            measured = statistics.median(times)
            if measured <= b + a:
                sys.exit(f"plan_check.py: a step of {measured:.4f} s is faster than memory and 1 TFLOP/s allow")
            device["achievable_share"] = a / (measured - b)
            plans[name] = predicted(options, folder, 2, device)
            print(f"one rank {name}, {options.batch} samples: {shown(times)} a step: "
                  f"{device['achievable_share'] * 1e3:.0f} GFLOP/s")
    real = statistics.median(two)
    print(f"self-test, bus bandwidth: {statistics.median(bandwidths):.2f} GB/s")
    print(f"two ranks, {2 * options.batch} samples: measured {shown(two)}")
    for name, plan in plans.items():
        print(f"  predicted from a rank {name}: {plan * 1e3:.1f} ms, {100 * (plan / real - 1):+.1f} %")


if __name__ == "__main__":
    main()
