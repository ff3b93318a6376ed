"""One function a figure: tables in, picture out. Numbers come from `readings`, looks from `style`."""

from flashspec.study.figures.costs import dilution, draft_step, probes, projection
from flashspec.study.figures.decoding import acceptance, blocks, prediction, throughput
from flashspec.study.figures.depths import ceilings, depth_forecast, hierarchy_memory, nested_stages, token_budget
from flashspec.study.figures.drafts import (
    draft_quality,
    draft_race,
    draft_space,
    draft_steps,
    paper_gain,
    predicted_measured,
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
from flashspec.study.figures.inside import formats, ledger, peers
from flashspec.study.figures.waterfall import waterfall

__all__ = [
    "acceptance",
    "blocks",
    "ceilings",
    "depth_forecast",
    "depth_times_head",
    "dilution",
    "draft_quality",
    "draft_race",
    "draft_space",
    "draft_step",
    "draft_steps",
    "exit_agreement",
    "exit_training",
    "formats",
    "head_bands",
    "head_build",
    "head_choice",
    "head_clusters",
    "head_cost",
    "head_recall",
    "head_required",
    "head_tar",
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
    "peers",
    "predicted_measured",
    "prediction",
    "probes",
    "projection",
    "sweep",
    "throughput",
    "token_budget",
    "verifier_accuracy",
    "waterfall",
]
