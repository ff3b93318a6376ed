"""One function a figure: tables in, picture out. Numbers come from `readings`, looks from `style`."""

from flashspec.study.figures.costs import dilution, draft_step, probes, projection
from flashspec.study.figures.decoding import acceptance, blocks, prediction, throughput
from flashspec.study.figures.inside import formats, ledger, peers
from flashspec.study.figures.waterfall import waterfall

__all__ = [
    "acceptance",
    "blocks",
    "dilution",
    "draft_step",
    "formats",
    "ledger",
    "peers",
    "prediction",
    "probes",
    "projection",
    "throughput",
    "waterfall",
]
