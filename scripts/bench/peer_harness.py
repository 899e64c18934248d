"""What the peers' scripts share: their arguments, timing in interleaved rounds, and one JSON line per form as dalle-bench prints."""
import argparse
import json
import statistics
import time

import torch


def run(description, job, unit, impl, forms, make_step, default_forms=None, rounds=5, warmup=2):
    """Times the forms that the arguments ask for. forms: name -> arguments of make_step(config, *arguments), which gives a
    function that takes one training step, and how many units (images, tokens) that is. Results are named impl + form."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--config", required=True, help="as dalle-bench names it")
    parser.add_argument("--forms", nargs="+", default=default_forms or list(forms), choices=list(forms))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--warmup", type=int, default=warmup, help="turns before those that count")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall",
                        help="cpu: the main thread's processor time, for one thread on a machine that others use too")
    options = parser.parse_args()
    if options.clock == "cpu" and options.threads != 1:
        parser.error("--clock cpu counts one thread: give --threads 1")
    clock = time.perf_counter if options.clock == "wall" else time.thread_time
    torch.set_num_threads(options.threads)
    steps = {form: make_step(options.config, *forms[form]) for form in options.forms}
    times = {form: [] for form in steps}
    for turn in range(-options.warmup, options.rounds):
        for form in list(steps)[:: 1 if turn % 2 == 0 else -1]:
            begin = clock()
            steps[form][0]()
            if turn >= 0:
                times[form].append(clock() - begin)
    for form, seconds in times.items():
        amount = steps[form][1]
        print(json.dumps({"job": job, "config": options.config, "impl": impl + form, "unit": unit,
                          "median": amount / statistics.median(seconds), "best": amount / min(seconds),
                          "n": options.rounds, "threads": options.threads, "clock": options.clock}), flush=True)
