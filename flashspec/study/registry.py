"""All experiments by name, each imported when it is asked for."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator, Mapping

from flashspec.study import experiments
from flashspec.study.experiment import Experiment
from flashspec.study.parameters import Refused


class Registry(Mapping[str, Experiment]):
    """The modules of `flashspec.study.experiments`; listing names imports none of them."""

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(found.name for found in pkgutil.iter_modules(experiments.__path__)))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __contains__(self, name: object) -> bool:
        return name in list(self)

    def __getitem__(self, name: str) -> Experiment:
        if name not in self:
            raise Refused(f"unknown experiment {name!r}; known experiments: {', '.join(self) or 'none'}")
        return importlib.import_module(f"{experiments.__name__}.{name}").EXPERIMENT


EXPERIMENTS = Registry()
