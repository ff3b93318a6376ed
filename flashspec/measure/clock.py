"""Seconds: one clock, and repeated timing of short calls with the warm-up discarded."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median

import torch

UNUSED = "behind"  # begins the name of a call that only leads up to the next one
now = time.perf_counter
Calls = Mapping[str, Callable[[], object]]


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


@torch.inference_mode()
def interleaved_seconds(
    calls: Calls, repeats: int, warmup: int, device: torch.device | str = "cpu", megabytes: int = 0
) -> dict[str, list[float]]:
    """Raw seconds of each call, taken in turns A B A B after discarded ones, without gradients.

    So many megabytes are read before every call.
    """
    raw: dict[str, list[float]] = {name: [] for name in calls}
    cold = torch.ones(megabytes << 18)
    for turn in range(-warmup, repeats):
        for name, call in calls.items():
            cold.sum()
            seconds = seconds_of(call, device)
            if turn >= 0:
                raw[name].append(seconds)
    return raw


def medians(calls: Calls, repeats: int, warmup: int, device: torch.device | str = "cpu") -> dict[str, float]:
    """Median seconds of each call, as `interleaved_seconds` takes them; calls named UNUSED are skipped."""
    raw = interleaved_seconds(calls, repeats, warmup, device)
    return {name: median(seconds) for name, seconds in raw.items() if not name.startswith(UNUSED)}
