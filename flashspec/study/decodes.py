"""Decodes kept action by action: what each stage wrote, was asked about and accepted, with the words."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace

from flashspec.decoding.generate import generate
from flashspec.parameters import hints, presets_of
from flashspec.study import race
from flashspec.study.drafts import folders, prompts_of
from flashspec.study.experiment import Experiment
from flashspec.study.racers import racers


@dataclass(frozen=True, kw_only=True)
class Row(race.Who):
    """One action of a decode: its Event, and `words`, a JSON list of what became of each token that the last stage judged.

    `begins` is the prompt's text.
    """

    stage: int
    waiting: int
    kept: int
    rows: int
    adds: int
    words: str
    begins: str = ""


def measure(params: race.Params) -> Iterator[Row]:
    """Decode the same prompts with every method and keep each action; nothing is timed."""
    from tqdm import tqdm

    plain, *_ = field = racers(replace(params, engine=("flashspec",)))
    for number, prompt in enumerate(prompts_of(params, params.per_kind, plain.models)):
        for racer in tqdm(field, desc=f"decodes, prompt {number + 1}", unit="decode", delay=2, leave=False):
            who = {name: value for name, value in racer.who.items() if name in hints(Row)}
            options = {"max_new_tokens": params.new_tokens, "stop": ()}
            found = generate(racer.models, list(prompt.ids), racer.method, racer.sampling, **options)
            for event, words in zip(found.events, found.said, strict=True):
                action = {**event._asdict(), "words": json.dumps(words)}
                action.pop("asked")
                yield Row(**who, **action, kind=prompt.kind, prompt=number, begins=prompt.text)


EXPERIMENT = Experiment("decodes", race.Params, Row, measure, False, race.points, folders, presets_of("decodes", race.Params))
