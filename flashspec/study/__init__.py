"""The study: experiments, their stored tables with origin, and the notebooks that show them."""

from flashspec.study.experiment import Experiment, Results, params, run, stored
from flashspec.study.parameters import Refused
from flashspec.study.registry import EXPERIMENTS

__all__ = ["EXPERIMENTS", "Experiment", "Refused", "Results", "params", "run", "stored"]
