"""All experiments by name, and the short ways to run one."""

from __future__ import annotations

import importlib
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

from flashspec.study import decodes, exits, family, parts, race, real_shapes, recall
from flashspec.study.experiment import Experiment
from flashspec.study.notebooks import checked
from flashspec.study.parameters import Refused, hints, parse
from flashspec.study.tables import Results


class Experiments(dict[str, Experiment]):
    """The experiments of the study by name, and those of your own by `module:NAME`."""

    def __missing__(self, name: str) -> Experiment:
        module, _, attribute = name.partition(":")
        if not (module and attribute):
            known, presets = ", ".join(self), ", ".join(self.presets())
            raise Refused(f"unknown experiment {name!r}; known experiments: {known}; presets: {presets}")
        if not isinstance(found := getattr(importlib.import_module(module), attribute, None), Experiment):
            raise Refused(f"{name!r} names no Experiment; name one as module:NAME")
        return found

    def presets(self) -> dict[str, Experiment]:
        """Every preset by name, and the experiment that it is of; a later one's presets hide an earlier one's."""
        return {preset: found for found in self.values() for preset in found.presets}

    def preset(self, name: str) -> Experiment:
        """The experiment of this name, or else the one that has a preset of this name."""
        return self[name] if name in self else self.presets().get(name) or self[name]


ALL = (decodes, exits, family, parts, real_shapes, recall, race)
EXPERIMENTS = Experiments({each.EXPERIMENT.name: each.EXPERIMENT for each in ALL})


def run(experiment: Experiment | str, params: Any = None, **options: Any) -> Results:
    """`Experiment.run` of an experiment or of the one with this name."""
    return _named(experiment).run(params, **options)


def stored(experiment: Experiment | str, root: Path | None = None, params: Any = None) -> Results | None:
    """The stored table of parameters as `run` takes them; None if there is no such table."""
    return _named(experiment).stored(params, root)


def params(scope: MutableMapping[str, Any], experiment: Experiment | str = "race") -> Any:
    """Parameters of an experiment from the names in a scope, such as a notebook's `globals()`.

    Single values, lists and strings become what fields are. Functions are skipped: a notebook's kernel defines `exit`.
    What papermill injected is `checked` first.
    """
    checked(scope)
    kind = _named(experiment).params
    return parse(kind, {name: scope[name] for name in hints(kind) if name in scope and not callable(scope[name])})


def _named(experiment: Experiment | str) -> Experiment:
    return EXPERIMENTS[experiment] if isinstance(experiment, str) else experiment
