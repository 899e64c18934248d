"""Trainings of the demo's prior with settings of their own, for the scripts that compare such runs."""
import json
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "configs/demo/prior.yaml"
TOKENS_PER_SAMPLE = 32 + 16 * 16
WARM_UP_STEPS = 20  # the first lines hold the making of masks, connections and buckets


def run(command):
    """What it printed; ends the script where it fails."""
    done = subprocess.run([str(part) for part in command], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        name = Path(sys.argv[0]).name
        sys.exit(f"{name}: {' '.join(map(str, command))} ended with {done.returncode}:\n{done.stderr}{done.stdout}")
    return done.stdout + done.stderr


def lines_of(folder, phase):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["phase"] == phase]


def shown(seconds):
    return f"{statistics.median(seconds) * 1e3:.1f} ms [{min(seconds) * 1e3:.1f} .. {max(seconds) * 1e3:.1f}]"


class PriorRuns:
    """With the programs of a build folder, and the tokenizer and dVAE of a demo's."""

    def __init__(self, build=ROOT / "build/release", demo=ROOT / "demo"):
        self.bin, demo = build.resolve() / "bin", demo.resolve()
        if not (demo / "dvae/checkpoints/latest").exists() or not (demo / "tokenizer").exists():
            sys.exit(f"{Path(sys.argv[0]).name}: expected a tokenizer and a dVAE in {demo}: run scripts/demo.sh first")
        self.models = {"tokenizer": demo / "tokenizer", "dvae": demo / "dvae"}

    def train(self, folder, settings, ranks=1, threads=1, device="cpu"):
        """Trains into `folder` with `settings`, a dictionary of keys and values. The run's log."""
        given = [part for key, value in {**self.models, **settings}.items() for part in ("--set", f"{key}={value}")]
        return run([ROOT / "scripts/launch.sh", ranks, self.bin / "train-prior", CONFIG, "--run-dir", folder,
                    "--threads", threads, "--device", device, *given])

    def time(self, folder, ranks, batch, steps):
        """Trains on ranks of one thread with a global batch of `batch`. Seconds of a step, and the run's log."""
        log = self.train(folder, {"trainer.num_steps": steps, "trainer.batch_size": batch,
                                  "trainer.log_interval_steps": 10, "trainer.preview_interval_steps": 0,
                                  "trainer.validation_interval_steps": 0, "trainer.checkpoint_interval_steps": 0}, ranks)
        speeds = [line["tokens_per_second"] for line in lines_of(folder, "train") if line["step"] > WARM_UP_STEPS]
        return batch * TOKENS_PER_SAMPLE / statistics.median(speeds), log
