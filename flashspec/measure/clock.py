"""Seconds: one clock, and repeated timing of short calls with the warm-up discarded."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

import torch

from flashspec.typed import at_least

UNUSED = "behind"  # begins the name of a call that only leads up to the next one
now = time.perf_counter
Calls = Mapping[str, Callable[[], object]]


@dataclass(frozen=True)
class Plan:
    """How to time: kept turns, discarded turns, megabytes read before every call, and the device."""

    repeats: int = 7
    warmup: int = 2
    evict_megabytes: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        at_least(self, repeats=1, warmup=0, evict_megabytes=0)


def settle(device: torch.device | str = "cpu") -> None:
    """Wait until the device has finished all queued work; returns at once on a CPU."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(call: Callable[[], object], device: torch.device | str = "cpu") -> float:
    """Wall seconds of one call, device work included."""
    settle(device)
    start = now()
    call()
    settle(device)
    return now() - start


def roof(device: str) -> float:
    """Bytes per second at which the device reads memory larger than its caches: the best of several sums."""
    block = torch.ones((1024 if device != "cpu" else 64) << 18, device=device)
    seconds = [seconds_of(block.sum, device) for _ in range(8)]
    return block.nbytes / min(seconds)


def interleaved_seconds(calls: Calls, plan: Plan) -> dict[str, list[float]]:
    """Raw seconds of each call, taken in turns A B A B; the plan's warm-up turns are discarded."""
    raw: dict[str, list[float]] = {name: [] for name in calls}
    cold = torch.ones(plan.evict_megabytes << 18)
    for turn in range(-plan.warmup, plan.repeats):
        for name, call in calls.items():
            cold.sum()
            seconds = seconds_of(call, plan.device)
            if turn >= 0:
                raw[name].append(seconds)
    return raw


def medians(calls: Calls, plan: Plan) -> dict[str, float]:
    """Median seconds of each call, in turns without gradients; calls named UNUSED are skipped."""
    with torch.inference_mode():
        raw = interleaved_seconds(calls, plan)
    return {name: median(seconds) for name, seconds in raw.items() if not name.startswith(UNUSED)}
