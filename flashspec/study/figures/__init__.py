"""One function a figure: tables in, picture out. Numbers come from readings, marks from `marks`, looks from `style`."""

from flashspec.study.figures.chain import answers, draft_step, final_token, formats, ledger, peers, throughput, waterfall
from flashspec.study.figures.drafts import (
    draft_quality,
    draft_race,
    draft_space,
    draft_steps,
    paper_gain,
    predicted_measured,
    sweep,
)  # fmt: skip
from flashspec.study.figures.heads import head_cost, head_depth, head_recall, head_speedups
from flashspec.study.figures.hierarchies import combined, exit_quality, head_gains, hierarchy, schedules, token_budget

__all__ = [
    "answers", "combined", "draft_quality", "draft_race", "draft_space", "draft_step", "draft_steps", "exit_quality",
    "final_token", "formats", "head_cost", "head_depth", "head_gains", "head_recall", "head_speedups", "hierarchy", "ledger",
    "paper_gain", "peers", "predicted_measured", "schedules", "sweep", "throughput", "token_budget", "waterfall",
]  # fmt: skip
