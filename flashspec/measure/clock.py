"""Seconds: one clock, and repeated timing of small calls with warm-up thrown away."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import numpy as np
import torch

now = time.perf_counter


def settle(device: torch.device | str = "cpu") -> None:
    """Wait until the device has done all queued work; nothing to wait for on a CPU."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(call: Callable[[], object], device: torch.device | str = "cpu") -> float:
    """Wall seconds of one call, device work included."""
    settle(device)
    start = now()
    call()
    settle(device)
    return now() - start


def interleaved_seconds(calls: Mapping[str, Callable[[], object]], repeats: int, warmup: int = 2) -> dict[str, list[float]]:
    """Raw seconds of each call, taken in turns A B A B; the first `warmup` turns are discarded."""
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}")
    raw: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(warmup + repeats):
        for name, call in calls.items():
            seconds = seconds_of(call)
            if turn >= warmup:
                raw[name].append(seconds)
    return raw


def median(values: list[float] | tuple[float, ...]) -> float:
    """The middle value."""
    return float(np.median(values))


def iqr(values: list[float] | tuple[float, ...]) -> float:
    """Distance between the first and the third quartile."""
    low, high = np.quantile(values, (0.25, 0.75))
    return float(high - low)
