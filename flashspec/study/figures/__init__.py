"""One function a figure: tables in, picture out. Numbers come from `readings`, looks from `style`."""

from flashspec.study.figures.costs import dilution, draft_step, probes, projection
from flashspec.study.figures.decoding import acceptance, blocks, prediction, throughput
from flashspec.study.figures.depths import depth_forecast, hierarchy_memory, nested_stages
from flashspec.study.figures.drafts import (
    draft_family,
    draft_latency,
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
    head_choice,
    head_clusters,
    head_cost,
    head_recall,
    head_tar,
)
from flashspec.study.figures.hierarchies import (
    exit_agreement,
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
    "depth_forecast",
    "depth_times_head",
    "dilution",
    "draft_family",
    "draft_latency",
    "draft_quality",
    "draft_space",
    "draft_step",
    "exit_agreement",
    "formats",
    "head_bands",
    "head_choice",
    "head_clusters",
    "head_cost",
    "head_recall",
    "head_tar",
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
    "prediction",
    "prediction_errors",
    "probes",
    "projection",
    "sweep",
    "throughput",
    "verifier_accuracy",
    "waterfall",
]
