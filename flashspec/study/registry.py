"""All experiments by name, each imported on first use."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any

from flashspec.study.experiment import Experiment
from flashspec.study.notebooks import checked
from flashspec.study.parameters import Refused, hints, parse
from flashspec.study.tables import Results

NAMES = ["decodes", "exits", "family", "parts", "real_shapes", "recall", "race"]  # a later one's presets hide an earlier one's


class Registry(Mapping[str, Experiment]):
    """The experiments of the study, each the `EXPERIMENT` of the module of its name; listing names imports none of them."""

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(NAMES))

    def __len__(self) -> int:
        return len(NAMES)

    def __contains__(self, name: object) -> bool:
        return name in NAMES

    def __getitem__(self, name: str) -> Experiment:
        """The experiment of this name, or one of your own by `module:NAME`."""
        module, _, attribute = name.partition(":")
        if name not in self and not (module and attribute):
            raise Refused(f"unknown experiment {name!r}; known experiments: {', '.join(self)}")
        found = importlib.import_module(module if attribute else f"flashspec.study.{name}")
        if not isinstance(experiment := getattr(found, attribute or "EXPERIMENT", None), Experiment):
            raise Refused(f"{name!r} names no Experiment; name one as module:NAME")
        return experiment

    def presets(self) -> dict[str, Experiment]:
        """Every preset by name, and the experiment that it is of."""
        return {preset: self[name] for name in NAMES for preset in self[name].presets}

    def preset(self, name: str) -> Experiment:
        """The experiment that has a preset of this name; Refused where none has."""
        if name not in (known := self.presets()):
            raise Refused(f"unknown experiment {name!r}; known experiments: {', '.join(self)}; presets: {', '.join(known)}")
        return known[name]


EXPERIMENTS = Registry()


def run(experiment: Experiment | str, params: Any = None, **options: Any) -> Results:
    """`Experiment.run` of an experiment or of the one with this name."""
    return _named(experiment).run(params, **options)


def stored(experiment: Experiment | str, root: Path | None = None, params: Any = None) -> Results | None:
    """The stored table of parameters as `run` takes them; None if there is no such table."""
    return _named(experiment).stored(params, root)


def params(scope: MutableMapping[str, Any], experiment: Experiment | type | str = "race") -> Any:
    """Parameters of an experiment or type from the names in a scope, such as a notebook's `globals()`.

    Single values, lists and strings become what fields are. Functions are skipped: a notebook's kernel defines `exit`.
    What papermill injected is `checked` first.
    """
    checked(scope)
    kind = experiment if isinstance(experiment, type) else _named(experiment).params
    return parse(kind, {name: scope[name] for name in hints(kind) if name in scope and not callable(scope[name])})


def _named(experiment: Experiment | str) -> Experiment:
    return experiment if isinstance(experiment, Experiment) else EXPERIMENTS[experiment]
