#!/usr/bin/env python3
"""Runs dalle-bench and its peers' scripts in turns, one thread each, and prints the speeds and the ratio of each config.

    beside_peer.py dvae-train|prior-train|sample|clip-score [--rounds N] [--bin DIR] [CONFIG...]

A turn is ours and each peer's one after the other, in changing order; ratios are taken within turns, since a machine's speed
drifts. Called by stage1.sh, stage2.sh, sample.sh and clip.sh, which see to what the peers need."""
import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
JOBS = {
    "dvae-train": {
        "peers": {"openai": ("dvae_peer.py", "bf16_nhwc")},
        "configs": ["openai_nhid64_64px_b16", "openai_nhid256_128px_b2", "openai_nhid32_64px_b32",
                    "openai_nhid128_64px_b8", "openai_nhid64_128px_b4"],
    },
    "prior-train": {
        "peers": {"plain GPT": ("prior_peer.py", "bf16"), "DALLE-pytorch": ("dalle_pytorch_peer.py", "bf16"),
                  "compiled": ("dalle_pytorch_peer.py", "bf16_compiled")},
        "configs": ["small_64+16x16_b4", "small_256+32x32_b1", "dim512x8_64+16x16_b4", "dim512x8_256+32x32_b1",
                    "dim256x4_64+16x16_b16"],
    },
    "clip-score": {
        "peers": {"oc pure bf16": ("clip_peer.py", "open_clip.pure_bf16"),
                  "oc autocast": ("clip_peer.py", "open_clip.autocast"), "oc f32": ("clip_peer.py", "open_clip.f32"),
                  "clip-anytorch": ("clip_peer.py", "clip-anytorch.f32")},
        "configs": ["vit_b32_b32", "vit_b32_b32_full_text"],
    },
    "sample": {
        "peers": {"plain GPT bf16": ("sample_peer.py", "bf16"), "plain GPT f32": ("sample_peer.py", "f32"),
                  "DALLE-pytorch": ("dalle_pytorch_sample_peer.py", "bf16")},
        "peer_rounds": 1,  # of a whole picture, after one that warms up
        "configs": ["small_64+16x16_b1", "small_64+16x16_b8", "dim1024x12_64+16x16_b1"],
    },
}


def last_line(command):
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode != 0:
        sys.exit(f"beside_peer.py: {' '.join(map(str, command))} failed:\n{done.stderr[-2000:]}")
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", choices=list(JOBS))
    parser.add_argument("configs", nargs="*", help="names as in dalle-bench; default: several sizes")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each config (5)")
    parser.add_argument("--bin", default="build/release/bin", help="where dalle-bench is")
    parser.add_argument("--relaxation-precision", choices=["f32", "bf16"], help="passed on to dalle-bench dvae-train")
    parser.add_argument("--impl", help="the line of dalle-bench that is compared (its first)")
    options = parser.parse_intermixed_args()
    job = JOBS[options.job]

    def ours(config):
        command = [f"{options.bin}/dalle-bench", options.job, "--config", config, "--precision", "bf16", "--threads", "1",
                   "--rounds", "5", "--device", "cpu"]
        if options.relaxation_precision:
            command += ["--relaxation-precision", options.relaxation_precision]
        lines = last_line(command)
        for line in lines:
            if line["config"] == config and options.impl in (None, line["impl"]):
                return line["median"]
        known = ", ".join(f"{line['config']} {line['impl']}" for line in lines)
        sys.exit(f"beside_peer.py: expected a whole name of a config{' and of --impl' if options.impl else ''}, got "
                 f"{config} {options.impl or ''}; dalle-bench has {known or 'none with it'}")

    def theirs(config, script, form):
        rounds = str(job.get("peer_rounds", 5))
        return last_line([sys.executable, HERE / script, "--config", config, "--forms", form, "--rounds", rounds])[-1]["median"]

    print(f"{'config':28}{'ours':>10}" + "".join(f"{name:>16}{'ratio':>8}" for name in job["peers"]), flush=True)
    for config in options.configs or job["configs"]:
        speeds = {name: [] for name in ["ours", *job["peers"]]}
        for turn in range(options.rounds):
            for name in list(speeds)[:: 1 if turn % 2 == 0 else -1]:
                speeds[name].append(ours(config) if name == "ours" else theirs(config, *job["peers"][name]))
        line = f"{config:28}{statistics.median(speeds['ours']):>10.4g}"
        for name in job["peers"]:
            ratio = statistics.median(a / b for a, b in zip(speeds["ours"], speeds[name]))
            line += f"{statistics.median(speeds[name]):>16.4g}{ratio:>8.2f}"
        print(line, flush=True)


if __name__ == "__main__":
    main()
