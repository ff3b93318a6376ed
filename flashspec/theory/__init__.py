"""Closed forms, replays and forecasts of speculative decoding."""

from flashspec.theory.nested import Level, nested
from flashspec.theory.replay import Counts, curve_by_position, replayed, replayed_all
from flashspec.theory.rounds import (
    BreakEven,
    Costs,
    Devices,
    Interval,
    Weights,
    acceptance_for,
    amdahl,
    bootstrap,
    break_even,
    cheap_head_gain,
    cheap_head_gate,
    implied_step,
    interpolated,
    round_parts,
    round_time,
    speedup,
    split_costs,
    throughput,
    tokens_from_curve,
    tokens_per_check,
)
