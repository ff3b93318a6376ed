"""The study: experiments, their stored tables with origin, and the notebooks that show them."""

from flashspec.parameters import Refused
from flashspec.study.experiment import Experiment
from flashspec.study.notebooks import checked
from flashspec.study.registry import EXPERIMENTS, everywhere, params, run, stored
from flashspec.study.tables import Results

__all__ = ["EXPERIMENTS", "Experiment", "Refused", "Results", "checked", "everywhere", "params", "run", "stored"]
