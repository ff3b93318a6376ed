"""All experiments by name, each imported when it is asked for."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator, Mapping

from flashspec.study import experiments
from flashspec.study.experiment import Experiment
from flashspec.study.parameters import Refused

CORE = ("exits", "family", "parts", "recall", "race")


class Registry(Mapping[str, Experiment]):
    """The core experiments and the modules of `flashspec.study.experiments`; listing names imports none of them."""

    def __iter__(self) -> Iterator[str]:
        return iter(sorted([*CORE, *(found.name for found in pkgutil.iter_modules(experiments.__path__))]))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __contains__(self, name: object) -> bool:
        return name in list(self)

    def __getitem__(self, name: str) -> Experiment:
        if name not in self:
            raise Refused(f"unknown experiment {name!r}; known experiments: {', '.join(self) or 'none'}")
        room = "flashspec.study" if name in CORE else experiments.__name__
        return importlib.import_module(f"{room}.{name}").EXPERIMENT

    def preset(self, name: str) -> Experiment:
        """The core experiment that has a preset of this name; Refused where none has."""
        for each in reversed(CORE):
            if name in self[each].presets:
                return self[each]
        known = ", ".join(preset for each in CORE for preset in self[each].presets)
        raise Refused(f"unknown experiment {name!r}; known experiments: {', '.join(self)}; presets: {known}")


EXPERIMENTS = Registry()
