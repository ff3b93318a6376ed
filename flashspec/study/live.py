"""Live decoding: every method on one prompt, on this machine. Shows texts and counts, never a speedup."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING

from flashspec.decoding.generate import Output, generate
from flashspec.decoding.method import METHODS, Method, build
from flashspec.decoding.models import Models
from flashspec.sampling import Sampling
from flashspec.study.frames import DataFrame, framed

if TYPE_CHECKING:
    from IPython.display import HTML

COUNTS = ("emitted", "forwards", "rounds", "drafted", "accepted")
SHADES = {"accepted": "#cfe8d5", "own": "#ffd9b8"}


def decode_all(models: Models, prompt: str | list[int], sampling: Sampling, tokens: int, k: int = 4) -> dict[str, Output]:
    """One decode of every method that these models offer, by name, each with k drafted tokens per check.

    Methods that verify are decoded once more with an eager final token, under the name "METHOD, eager".
    """
    pairs = product(METHODS.items(), ("deferred", "eager"))
    every = {
        name + ", eager" * (end == "eager"): replace(method, k=k, finalize=end)
        for (name, method), end in pairs
        if end == "deferred" or not method.writer_is_target
    }
    chosen = {name: method for name, method in every.items() if offered(models, method)}
    return {name: generate(models, prompt, method, sampling, max_new_tokens=tokens) for name, method in chosen.items()}


def offered(models: Models, method: Method) -> bool:
    """Whether these models can run a method: exits need enough layers of our own models, some heads a weight."""
    try:
        build(method, models, context=1)
    except ValueError:
        return False
    return True


def table(outputs: Mapping[str, Output]) -> DataFrame:
    """One line per method: its counts, the two rates read from them, and whether its text is the baseline's."""
    names = [*COUNTS, "acceptance", "tar"]
    lines = [[name, *(getattr(output.stats, each) for each in names)] for name, output in outputs.items()]
    found = framed(lines, ["method", *names]).set_index("method").round(2).rename(columns={"tar": "TAR"})
    return found.assign(**{"same text": [output.tokens == outputs["baseline"].tokens for output in outputs.values()]})


def coloured(models: Models, prompt: str | list[int], output: Output) -> HTML:
    """The text after its prompt: green where the target accepted a drafted token, orange where it wrote its own."""
    from IPython.display import HTML

    before = prompt if isinstance(prompt, str) else models.decode(list(prompt))
    words = []
    for token, kind in zip(output.tokens, kinds(output), strict=False):
        words.append(f'<span style="background:{SHADES[kind]};color:#000">{html.escape(models.decode([token]))}</span>')
    return HTML(f'<pre class="decoded">{html.escape(before)}{"".join(words)}</pre>')


def kinds(output: Output) -> Iterator[str]:
    """For each token in order, whether the last stage accepted it or wrote it."""
    last = max(event.stage for event in output.events)
    for event in output.events:
        if event.stage == last:
            yield from ["accepted"] * event.kept
            yield from ["own"] * event.adds
