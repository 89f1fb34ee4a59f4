r"""
Where the time of a training step goes that is not the network's.

``python examples/benchmarks/shares.py`` runs steps of SGD jittering under torch's profiler, and
the network alone. Layers are known by name; of other operations the network has the time that they
take when it runs alone, and what they take beyond is sorted by what calls for them. The rest of the
step, its time of the processor, is the network's and that between operations, of Python.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter, defaultdict

import numpy as np
import torch
from cases import Case, cases
from torch.profiler import ProfilerActivity, profile

from deepinv_jitter.evaluation.tables import markdown

LAYERS = ("conv", "Conv", "relu", "Relu", "clamp", "threshold", "_norm", "Norm", "linear", "mm")
#: Of operations beyond the network's, by a part of their name.
PARTS = {
    "operator": ("bmm", "fft", "roll", "unfold", "flip", "complex", "pad", "Slice", "slice"),
    "noise": ("normal", "amax"),
    "optimizer": ("Optimizer", "foreach", "addcdiv", "addcmul", "lerp", "sqrt"),
    "is it finite": ("aten::abs", "aten::max", "isfinite", "local_scalar"),
}


def spent(step, rounds: int) -> tuple[Counter, float]:
    """
    Milliseconds of each operation in a step, without those that it calls; and of the step.

    Of each call the median over the rounds, so that other processes do not count, if it is short.
    """
    calls, whole = defaultdict(list), []
    step()
    for _ in range(rounds):
        with profile(activities=[ProfilerActivity.CPU]) as found:
            start = time.process_time()
            step()
            whole.append(time.process_time() - start)
        taken = defaultdict(list)
        for event in found.events():
            taken[event.key].append(event.self_cpu_time_total)
        for name, values in taken.items():
            calls[name].append(values)
    # One that is not called in every round is the profiler's own
    each = {k: np.median(v, 0).sum() / 1e3 for k, v in calls.items() if len({*map(len, v)}) == 1}
    return Counter(each), 1e3 * float(np.median(whole))


def shares(case: Case, rounds: int) -> list[str]:
    """Milliseconds of a step, and per cent of each part."""
    alone, _ = spent(case.floor(), rounds)
    step, whole = spent(case.step(case.model(jitter=0.1)), rounds)
    parts = dict.fromkeys((*PARTS, "other"), 0.0)
    for name, ms in step.items():
        layer = any(word in name for word in LAYERS) and name != "aten::bmm"
        network = ms if layer else min(ms, alone[name])
        called = (part for part, words in PARTS.items() if any(word in name for word in words))
        parts[next(called, "other")] += ms - network
    rest = whole - sum(parts.values())
    cells = [f"{100 * ms / whole:.2g}" for ms in (*parts.values(), rest)]
    return [case.name, f"{whole:.0f}", *cells]


def main() -> None:
    parser = argparse.ArgumentParser(description="Where the time of a training step goes")
    parser.add_argument("--quick", action="store_true", help="small sizes, to try it")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(1)
    lines = [["case", "ms", *PARTS, "other", "network and Python"]]
    for case in cases(args.quick, "cpu").values():
        lines.append(shares(case, args.rounds))
    print(markdown(lines))


if __name__ == "__main__":
    main()
