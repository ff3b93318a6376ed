"""One function a figure: tables in, picture out. Numbers come from `readings`, looks from `style`."""

from flashspec.study.figures.chain import draft_step, final_token, throughput, waterfall
from flashspec.study.figures.depths import ceilings, depth_forecast, hierarchy_memory, nested_stages, token_budget
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
from flashspec.study.figures.hierarchies import (
    exit_agreement,
    exit_training,
    hierarchy,
    hierarchy_kinds,
    hispec_flash,
    hispec_heat,
    layer_passes,
    nested_prediction,
    verifier_accuracy,
)
from flashspec.study.figures.rounds import formats, ledger, peers

__all__ = [
    "ceilings",
    "depth_forecast",
    "draft_family",
    "draft_latency",
    "draft_lengths",
    "draft_quality",
    "draft_space",
    "draft_step",
    "exit_agreement",
    "exit_training",
    "final_token",
    "formats",
    "head_cost",
    "head_depth",
    "head_recall",
    "head_speedups",
    "generalises",
    "hierarchy",
    "hierarchy_kinds",
    "hierarchy_memory",
    "hispec_flash",
    "hispec_heat",
    "layer_passes",
    "ledger",
    "nested_prediction",
    "nested_stages",
    "paper_gain",
    "papers_table",
    "peers",
    "predicted_measured",
    "prediction_errors",
    "sweep",
    "throughput",
    "token_budget",
    "verifier_accuracy",
    "waterfall",
]
