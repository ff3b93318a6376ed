"""One function a figure: tables in, picture out. Numbers come from `readings`, looks from `style`."""

from flashspec.study.figures.costs import dilution, draft_step, probes, projection
from flashspec.study.figures.decoding import acceptance, blocks, prediction, throughput
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
from flashspec.study.figures.heads import (
    depth_times_head,
    head_bands,
    head_build,
    head_choice,
    head_clusters,
    head_cost,
    head_recall,
    head_required,
    head_tar,
)
from flashspec.study.figures.hierarchies import combined, exit_quality, head_gains, hierarchy, schedules, token_budget
from flashspec.study.figures.inside import formats, ledger, peers
from flashspec.study.figures.waterfall import waterfall

__all__ = [
    "acceptance",
    "blocks",
    "combined",
    "depth_times_head",
    "dilution",
    "draft_family",
    "draft_latency",
    "draft_lengths",
    "draft_quality",
    "draft_space",
    "draft_step",
    "exit_quality",
    "formats",
    "head_bands",
    "head_build",
    "head_choice",
    "head_clusters",
    "head_cost",
    "head_gains",
    "head_recall",
    "head_required",
    "head_tar",
    "generalises",
    "hierarchy",
    "ledger",
    "paper_gain",
    "papers_table",
    "peers",
    "predicted_measured",
    "prediction",
    "prediction_errors",
    "probes",
    "projection",
    "schedules",
    "sweep",
    "throughput",
    "token_budget",
    "waterfall",
]
