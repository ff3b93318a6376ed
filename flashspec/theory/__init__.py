"""Closed forms, replays and forecasts of speculative decoding."""

from flashspec.theory.nested import Level, nested
from flashspec.theory.replay import Counts, curve_by_position, replayed, replayed_all
from flashspec.theory.rounds import (
    BreakEven,
    Costs,
    Interval,
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
    throughput,
    tokens_from_curve,
    tokens_per_check,
)
