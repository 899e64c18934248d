#!/usr/bin/env python3
"""Kills ranks of a training at random moments and shows that nothing is lost: random_kills.py [N] [--bin DIR] [--seed S]

A tiny prior is trained with 2 ranks that save after every other step. N times (50 unless said) a random rank is killed at a
random moment between its start and its end: with SIGKILL, or one time in five with SIGSTOP, as a rank that hangs. Each time
the other must end within trainer.timeout_seconds, with exit code 1 and a message that names the lost rank; then the same
command is started again, as a launcher would (SLURM_RESTART_COUNT). A run that comes to its end is compared with one that
nobody disturbed: its weights, averages and moments must be the same bytes. Then a run is killed N / 10 times, at least
twice, and goes on with 4, 1 and 2 ranks in turn: the losses of all its steps must be those of the other within 1e-5.

Exit code 1 where anything is not as it must be. The work is in a scratch folder, which stays where something is wrong.
"""
import argparse
import collections
import json
import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
TIMEOUT_SECONDS = 20
STEPS = 120
STOPPED_SHARE = 0.2

# Small enough that rounding, which differs between numbers of ranks, stays rounding: a wider prior at this rate makes
# percents of it within these steps, with or without kills.
TRAINER = """trainer:
  num_steps: {steps}
  batch_size: 8
  clip_norm: 1
  seed: 1
  ema_decay: 0.9
  log_interval_steps: 1
  checkpoint_interval_steps: {interval}
  timeout_seconds: {timeout}
precision: f32
data:
  sources:
    - path: {root}/data/emoji/train.tar
      max_samples: 48
  augmentation: none
learning_rate:
  start: 4e-3
"""
TOKENIZER = """data:
  sources:
    - path: {root}/data/emoji/train.tar
      max_samples: 48
tokenizer:
  vocab_size: 340
"""
DVAE = """model:
  image_size: 16
  vocab_size: 16
  hidden_dim: 8
  num_groups: 3
  num_blocks_per_group: 1
  decoder_init_dim: 8
relaxation:
  kl_weight_end: 0
"""
PRIOR = """model:
  text_context: 16
  text_vocab_size: 0
  grid_size: 0
  image_vocab_size: 0
  dim: 16
  num_heads: 2
  num_layers: 4
  conv_kernel: 3
tokenizer: tokenizer
dvae: dvae
preview_captions: 1
"""


class Failure(Exception):
    pass


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Ranks:
    """A training as processes, its messages in files."""

    def __init__(self, place, bin_dir, run, size, is_restart):
        port = free_port()
        self.errors = [place / f"rank-{rank}.err" for rank in range(size)]
        self.processes = []
        for rank in range(size):
            variables = dict(os.environ, RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(rank),
                             MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
            variables.pop("SLURM_RESTART_COUNT", None)
            if is_restart:
                variables["SLURM_RESTART_COUNT"] = "1"
            command = [bin_dir / "train-prior", place / "prior.yaml", "--run-dir", run, "--threads", "1",
                       "--device", "cpu"]
            self.processes.append(subprocess.Popen(command, env=variables, stdout=subprocess.DEVNULL,
                                                   stderr=open(self.errors[rank], "wb")))

    def wait_until(self, end):
        """False where all have ended before that moment."""
        while time.monotonic() < end:
            if all(process.poll() is not None for process in self.processes):
                return False
            time.sleep(0.002)
        return True

    def message(self, rank):
        return self.errors[rank].read_text(errors="replace")

    def finish(self):
        for rank, process in enumerate(self.processes):
            if process.wait(timeout=300) != 0:
                raise Failure(f"rank {rank} of an undisturbed attempt ended with {process.returncode}:\n"
                              + self.message(rank))

    def lose(self, run, lost, kind):
        """Kills or stops that rank; seconds until the others have ended, and whether they saw it in training."""
        self.processes[lost].send_signal(kind)
        others = [rank for rank in range(len(self.processes)) if rank != lost]
        taken, last = 0.0, time.monotonic()
        while taken < TIMEOUT_SECONDS and any(self.processes[rank].poll() is None for rank in others):
            time.sleep(0.01)
            now = time.monotonic()
            taken += min(now - last, 0.5)  # longer: this script, and the ranks with it, were stopped
            last = now
        late = [rank for rank in others if self.processes[rank].poll() is None]
        for process in self.processes:
            process.kill()
            process.wait()
        if late:
            raise Failure(f"rank {late[0]} is still there {TIMEOUT_SECONDS} s after rank {lost} was lost:\n"
                          + self.message(late[0]))
        texts = [self.message(rank) for rank in others]
        for rank in others:
            code, text = self.processes[rank].returncode, self.message(rank)
            if code == 0 and has_ended(run):
                continue  # it had come to the end already
            if code != 1 or f"rank {lost}" not in text:
                raise Failure(f"rank {rank} ended with {code} after rank {lost} was lost and says:\n{text}")
        return taken, any(" at step " in text for text in texts)


def is_saving(run):
    folder = run / "checkpoints"
    return folder.is_dir() and any(".tmp-" in name for name in os.listdir(folder))


def has_ended(run):
    return (run / "checkpoints" / f"step-{STEPS:08d}" / "MANIFEST.json").exists()


def expect_same_files(run, straight):
    for name in ("model", "ema", "optimizer"):
        part = f"checkpoints/step-{STEPS:08d}/{name}.safetensors"
        if (run / part).read_bytes() != (straight / part).read_bytes():
            raise Failure(f"{run / part} is not {straight / part}")


def losses_of(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["phase"] == "train"]


def expect_near_losses(run, straight):
    losses, wanted = losses_of(run), losses_of(straight)
    if len(losses) != STEPS or len(wanted) != STEPS:
        raise Failure(f"{run}: expected {STEPS} steps in metrics.jsonl, got {len(losses)}")
    worst = max(abs(a - b) / abs(b) for a, b in zip(losses, wanted))
    if worst > 1e-5:
        raise Failure(f"{run}: a loss differs by {worst:.2e} of its size")
    return worst


class Campaign:
    def __init__(self, place, bin_dir, chance):
        self.place, self.bin_dir, self.chance = place, bin_dir, chance
        self.counts = collections.Counter()
        self.slowest = 0.0
        self.span = 0.0

    def prepare(self):
        def config(name, text):
            (self.place / f"{name}.yaml").write_text(text.format(root=ROOT, steps=STEPS, interval=2,
                                                                 timeout=TIMEOUT_SECONDS))
        config("tokenizer", TOKENIZER)
        config("dvae", TRAINER.replace("{steps}", "12").replace("{interval}", "0") + DVAE)
        config("prior", TRAINER + PRIOR)
        for name in ("tokenizer", "dvae"):
            subprocess.run([self.bin_dir / f"train-{name}", self.place / f"{name}.yaml", "--run-dir", self.place / name,
                            "--threads", "1"], check=True, stderr=subprocess.DEVNULL)
        self.straight = self.place / "straight"
        start = time.monotonic()
        Ranks(self.place, self.bin_dir, self.straight, 2, False).finish()
        self.span = time.monotonic() - start

    def kill_once(self, run, size, is_restart):
        """Starts `run` (again) and kills a rank. False where it came to its end before."""
        ranks = Ranks(self.place, self.bin_dir, run, size, is_restart)
        if not ranks.wait_until(time.monotonic() + self.chance.uniform(0, self.span)):
            ranks.finish()
            return False
        lost = self.chance.randrange(size)
        kind = signal.SIGSTOP if self.chance.random() < STOPPED_SHARE else signal.SIGKILL
        saves = is_saving(run)
        taken, was_in_training = ranks.lose(run, lost, kind)
        self.slowest = max(self.slowest, taken)
        self.counts["training"] += was_in_training
        self.counts["kills"] += 1
        self.counts["stops"] += kind == signal.SIGSTOP
        self.counts["saving"] += saves
        self.counts["rank 0"] += lost == 0
        return True

    def run_to_the_end(self, name, most_kills, sizes):
        """A run that is killed up to so many times and started again, with one of `sizes` after the other."""
        run = self.place / name
        kills = attempt = 0
        while True:
            size = sizes[attempt % len(sizes)]
            if kills == most_kills:
                Ranks(self.place, self.bin_dir, run, size, attempt > 0).finish()
                break
            if not self.kill_once(run, size, attempt > 0):
                break
            kills += 1
            attempt += 1
        if not has_ended(run):
            raise Failure(f"{run} has not come to step {STEPS}")
        return kills


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kills", nargs="?", type=int, default=50)
    parser.add_argument("--bin", type=pathlib.Path, default=ROOT / "build/release/bin")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    place = pathlib.Path(tempfile.mkdtemp(prefix="dalle-kills-"))
    campaign = Campaign(place, options.bin.resolve(), random.Random(options.seed))
    counts = campaign.counts
    start = time.monotonic()
    try:
        campaign.prepare()
        runs = 0
        while counts["kills"] < options.kills:
            runs += 1
            kills = campaign.run_to_the_end(f"run-{runs}", options.kills - counts["kills"], [2])
            expect_same_files(place / f"run-{runs}", campaign.straight)
            print(f"run {runs}: {kills} kills, the same bytes as the undisturbed run; {counts['kills']} kills so far",
                  flush=True)
            shutil.rmtree(place / f"run-{runs}")
        same = counts.copy()
        worst, moved = 0.0, 0
        while moved < max(2, options.kills // 10):
            runs += 1
            moved += campaign.run_to_the_end(f"run-{runs}", max(2, options.kills // 10) - moved, [2, 4, 1])
            worst = max(worst, expect_near_losses(place / f"run-{runs}", campaign.straight))
    except Failure as failure:
        print(f"FAILED after {counts['kills']} kills (seed {options.seed}, in {place}): {failure}")
        return 1
    shutil.rmtree(place)
    print(f"{same['kills']} kills of 2 ranks ({same['rank 0']} of rank 0, {same['stops']} by stopping, {same['training']} last seen at "
          f"a step and the rest at the start, {same['saving']} while a checkpoint was being written): the others ended within {campaign.slowest:.1f} s of {TIMEOUT_SECONDS} s, and "
          f"every final checkpoint is bitwise that of the undisturbed run; {moved} more kills with 2, 4 and 1 ranks in "
          f"turn: losses differ by {worst:.1e} at most; {time.monotonic() - start:.0f} s in all")
    return 0


if __name__ == "__main__":
    sys.exit(main())
