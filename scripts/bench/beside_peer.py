#!/usr/bin/env python3
"""Runs dalle-bench and its peers' scripts in turns, one thread each, and prints the speeds and the ratio of each config.

    beside_peer.py dvae-train|prior-train|sample|clip-score [--rounds N] [--bin DIR] [--peer NAME] [CONFIG...]

A turn is ours and each peer's one after the other, in changing order; ratios are taken within turns, since a machine's speed
drifts. Peers run in every setting that could be their fastest; the table has the fastest of each, the lines below it all of them.
Called by stage1.sh, stage2.sh, sample.sh and clip.sh, which see to what the peers need."""
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
        "peers": {"openai": ("dvae_peer.py", ["bf16_nhwc"])},
        "configs": ["openai_nhid64_64px_b16", "openai_nhid256_128px_b2", "openai_nhid32_64px_b32",
                    "openai_nhid128_64px_b8", "openai_nhid64_128px_b4"],
    },
    "prior-train": {
        "peers": {"plain GPT": ("prior_peer.py", ["bf16", "bf16_compiled"]),
                  "DALLE-pytorch": ("dalle_pytorch_peer.py", ["bf16", "bf16_compiled"])},
        "warmup": 6,  # steps in which memory is still fetched from the system are twice as slow
        "configs": ["small_64+16x16_b4", "small_256+32x32_b1", "dim512x8_64+16x16_b4", "dim512x8_256+32x32_b1",
                    "dim256x4_64+16x16_b16"],
    },
    "clip-score": {
        "peers": {"open_clip": ("clip_peer.py", ["open_clip.pure_bf16", "open_clip.pure_bf16_compiled",
                                                 "open_clip.autocast", "open_clip.autocast_compiled", "open_clip.f32"]),
                  "clip-anytorch": ("clip_peer.py", ["clip-anytorch.f32", "clip-anytorch.autocast",
                                                     "clip-anytorch.autocast_compiled"])},
        "configs": ["vit_b32_b32", "vit_b32_b32_full_text"],
    },
    "sample": {
        "peers": {"plain GPT": ("sample_peer.py", ["bf16", "f32", "bf16_compiled", "f32_compiled"]),
                  "DALLE-pytorch": ("dalle_pytorch_sample_peer.py", ["bf16", "f32", "row_col_bf16", "row_col_f32"])},
        "peer_rounds": 1,  # of a whole picture, after one that warms up
        "configs": ["small_64+16x16_b1", "small_64+16x16_b8", "mini_1024x12_64+16x16_b1"],
    },
}


def json_lines(command):
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
    parser.add_argument("--peer", action="append", help="one of the peers alone, as the table names it; may be repeated")
    options = parser.parse_intermixed_args()
    job = JOBS[options.job]
    if unknown := sorted(set(options.peer or []) - set(job["peers"])):
        parser.error(f"--peer: expected one of {', '.join(job['peers'])}, got {', '.join(unknown)}")
    peers = {name: peer for name, peer in job["peers"].items() if not options.peer or name in options.peer}

    warmup = ["--warmup", str(job["warmup"])] if "warmup" in job else []

    def ours(config):
        command = [f"{options.bin}/dalle-bench", options.job, "--config", config, "--precision", "bf16", "--threads", "1",
                   "--rounds", "5", *warmup, "--device", "cpu"]
        if options.relaxation_precision:
            command += ["--relaxation-precision", options.relaxation_precision]
        lines = json_lines(command)
        for line in lines:
            if line["config"] == config and options.impl in (None, line["impl"]):
                return line["median"]
        known = ", ".join(f"{line['config']} {line['impl']}" for line in lines)
        sys.exit(f"beside_peer.py: expected a whole name of a config{' and of --impl' if options.impl else ''}, got "
                 f"{config} {options.impl or ''}; dalle-bench has {known or 'none with it'}")

    def theirs(config, script, forms):
        """The speed of each form."""
        rounds = str(job.get("peer_rounds", 5))
        lines = json_lines([sys.executable, HERE / script, "--config", config, "--forms", *forms, "--rounds", rounds,
                            *warmup])
        return dict(zip(forms, (line["median"] for line in lines), strict=True))

    print(f"{'config':28}{'ours':>10}" + "".join(f"{name:>16}{'ratio':>8}" for name in peers), flush=True)
    for config in options.configs or job["configs"]:
        turns = {name: [] for name in ["ours", *peers]}
        for turn in range(options.rounds):
            for name in list(turns)[:: 1 if turn % 2 == 0 else -1]:
                turns[name].append(ours(config) if name == "ours" else theirs(config, *peers[name]))
        line, details = f"{config:28}{statistics.median(turns['ours']):>10.4g}", []
        for name, (_, forms) in peers.items():
            speed = {form: statistics.median(turn[form] for turn in turns[name]) for form in forms}
            ratio = {form: statistics.median(a / b[form] for a, b in zip(turns["ours"], turns[name])) for form in forms}
            fastest = min(forms, key=ratio.get)
            line += f"{speed[fastest]:>16.4g}{ratio[fastest]:>8.2f}"
            if len(forms) > 1:
                details.append(f"  {name}: " + ", ".join(f"{form} {speed[form]:.4g} ({ratio[form]:.2f}x)" for form in forms))
        print("\n".join([line, *details]), flush=True)


if __name__ == "__main__":
    main()
