"""Numbers that the reproduced works print, each with where it stands, so that no page types one."""

from __future__ import annotations

from typing import NamedTuple

from flashspec.study.frames import DataFrame, framed
from flashspec.theory import Costs, implied_step, throughput

# Ma and Wang 2026, abstract: milliseconds, times, tokens a second
THESIS = {
    "projection_dense_ms": 2.493,
    "projection_flash_ms": 0.577,
    "projection": 4.321,
    "draft_step": 1.108,
    "eager_dense": 9.769,
    "eager_flash": 9.823,
    "eager": 1.006,
    "deferred_dense": 10.731,
    "deferred_flash": 11.374,
    "deferred": 1.060,
}
HISPEC_OVER_SELF = 1.28  # HiSpec over single-layer speculation, average; Kumar et al. 2025, abstract


def head_share() -> float:
    """Share of the thesis's dense draft step that its head takes, from the time saved and the step's speedup."""
    saved = THESIS["projection_dense_ms"] - THESIS["projection_flash_ms"]
    return THESIS["projection_dense_ms"] / implied_step(saved, THESIS["draft_step"])


class PublishedDraft(NamedTuple):
    """A draft that a paper printed all parts of: its shape's name, tokens a check, milliseconds a step, tokens a second."""

    shape: str
    layers: int
    tar: float
    step_ms: float
    rate: float


# Yan et al. 2024, LLaMA-65B as target
YAN_DEEP = PublishedDraft("Sheared-LLaMA-1.3B", 24, 3.81, 13.13, 23.10)
YAN_WIDE = PublishedDraft("NoFT-Wide-1.3B", 12, 3.70, 6.69, 32.59)
YAN_TARGET = "LLaMA-65B"
YAN_HEADLINE = 1.60  # designed draft over an existing one, LLaMA-65B and OPT-66B; abstract
YAN_EXPERIMENTS = 350  # runs; abstract
YAN_TUNED = 1.45  # designed draft against a fine-tuned target, Vicuna-33B; "up to 45 %"
# tokens a second of the deep and the wide draft at T = 1, and the gain in percent printed beside them
YAN_SAMPLED = (("MMLU", 12.06, 24.32, 101.6), ("HellaSwag", 12.30, 24.32, 97.7), ("Chatbot Arena", 11.45, 24.18, 111.8))


def implied_round() -> tuple[int, float]:
    """Drafted tokens a check, and milliseconds of a check, that both printed drafts imply: two rounds, two unknowns."""
    deep, wide = (1e3 * draft.tar / draft.rate for draft in (YAN_DEEP, YAN_WIDE))
    k = round((deep - wide) / (YAN_DEEP.step_ms - YAN_WIDE.step_ms))
    return k, (deep - k * YAN_DEEP.step_ms + wide - k * YAN_WIDE.step_ms) / 2


def computed() -> DataFrame:
    """What Yan et al. printed beside what the throughput model gives from the parts they printed; `off` in percent."""
    k, check = implied_round()
    deep, wide = (1e3 * throughput(draft.tar, Costs(draft.step_ms, check), k) for draft in (YAN_DEEP, YAN_WIDE))
    lines = [
        (YAN_DEEP.shape, "tokens/s", YAN_DEEP.rate, deep),
        (YAN_WIDE.shape, "tokens/s", YAN_WIDE.rate, wide),
        ("wide over deep draft", "x", YAN_WIDE.rate / YAN_DEEP.rate, wide / deep),
        *((f"gain at T = 1, {data}", "x", 1 + gain / 100, high / low) for data, low, high, gain in YAN_SAMPLED),
    ]
    table = framed(lines, ["what", "unit", "printed", "computed"])
    return table.assign(off=100 * (table["computed"] / table["printed"] - 1))
