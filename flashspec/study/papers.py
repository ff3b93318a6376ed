"""Numbers printed in the three reproduced works, each with its place, so that no page types one."""

from __future__ import annotations

from flashspec.theory import implied_step

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
YAN_HEADLINE = 1.60  # designed draft over an existing one, LLaMA-65B and OPT-66B; Yan et al. 2024, abstract
YAN_EXPERIMENTS = 350  # runs; abstract
YAN_TUNED = 1.45  # designed draft against a fine-tuned target, Vicuna-33B; "up to 45 %"


def head_share() -> float:
    """The head's share of the thesis's dense draft step, from the time saved and the step's speedup."""
    saved = THESIS["projection_dense_ms"] - THESIS["projection_flash_ms"]
    return THESIS["projection_dense_ms"] / implied_step(saved, THESIS["draft_step"])
