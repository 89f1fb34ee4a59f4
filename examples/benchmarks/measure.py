r"""Times as ratios of one run, taken in turns, and the live memory of a computation."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

#: A round during which others used more of the processor is repeated, up to as many times again.
FOREIGN = 0.06


@dataclass(frozen=True)
class Ratio:
    """A ratio of times: median and quartiles over the rounds."""

    median: float
    low: float
    high: float
    rounds: int

    def __str__(self) -> str:
        return f"{self.median:.3g} [{self.low:.3g}, {self.high:.3g}]"


class Times:
    """Seconds of several functions, round by round."""

    def __init__(self, seconds: dict[str, list[float]]):
        self.seconds = seconds

    def ratio(self, a: str, b: str, scale: float = 1.0) -> Ratio:
        """Of the rounds' own ratios, times a number."""
        values = scale * np.divide(self.seconds[a], self.seconds[b])
        low, mid, high = np.quantile(values, (0.25, 0.5, 0.75))
        return Ratio(float(mid), float(low), float(high), len(values))

    def median(self, a: str) -> float:
        return float(np.median(self.seconds[a]))


def in_turns(functions: dict[str, Callable[[], object]], rounds: int) -> Times:
    """
    Run the functions one after the other, round by round, every other round backwards: what slows
    the machine for a while slows all of them.
    """
    for function in functions.values():
        function()  # the first call allocates
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    kept = 0
    for trial in range(2 * rounds):
        order = list(functions) if trial % 2 else list(functions)[::-1]
        others, start = _others(), time.perf_counter()
        taken = {name: _timed(functions[name]) for name in order}
        wall = time.perf_counter() - start
        disturbed = _others() - others > FOREIGN * wall + 0.03
        # The last rounds are kept as they are
        if disturbed and 2 * rounds - trial > rounds - kept:
            continue
        for name, value in taken.items():
            seconds[name].append(value)
        kept += 1
        if kept == rounds:
            break
    return Times(seconds)


def _timed(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _others() -> float:
    """Processor seconds of all other processes so far; 0 where the system does not tell."""
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    except OSError:
        return 0.0
    user, nice, system, _, _, irq, softirq, _ = map(int, fields)
    busy = (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")
    own = os.times()
    return busy - own.user - own.system


def peak_memory(function: Callable[[], object]) -> float:
    """
    Peak of the memory that is live during a call, in MiB above that before it.

    Counted from the allocations and releases of torch, so that neither the fragmentation of the
    heap nor what other objects hold is in it.
    """
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        function()
    events = [e for e in profile.profiler.kineto_results.events() if e.nbytes()]
    sizes = [e.nbytes() for e in sorted(events, key=_start)]
    return float(np.cumsum([0, *sizes]).max()) / 2**20


def _start(event) -> int:
    # torch 2.3 knows microseconds alone; sorting keeps the order of those that share one
    return event.start_ns() if hasattr(event, "start_ns") else event.start_us()
