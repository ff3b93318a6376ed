"""One function a figure: tables in, picture out. Numbers come from readings, looks from `style`."""

from flashspec.study.figures.chain import draft_step, final_token, throughput, waterfall
from flashspec.study.figures.drafts import (
    draft_family,
    draft_latency,
    draft_lengths,
    draft_quality,
    draft_space,
    generalises,
    paper_gain,
    papers_table,
    predicted_measured,
    prediction_errors,
    sweep,
)
from flashspec.study.figures.heads import head_cost, head_depth, head_recall, head_speedups
from flashspec.study.figures.hierarchies import combined, exit_quality, head_gains, hierarchy, schedules, token_budget
from flashspec.study.figures.rounds import formats, ledger, peers

__all__ = [
    "combined",
    "draft_family",
    "draft_latency",
    "draft_lengths",
    "draft_quality",
    "draft_space",
    "draft_step",
    "exit_quality",
    "final_token",
    "formats",
    "generalises",
    "head_cost",
    "head_depth",
    "head_gains",
    "head_recall",
    "head_speedups",
    "hierarchy",
    "ledger",
    "paper_gain",
    "papers_table",
    "peers",
    "predicted_measured",
    "prediction_errors",
    "schedules",
    "sweep",
    "throughput",
    "token_budget",
    "waterfall",
]
