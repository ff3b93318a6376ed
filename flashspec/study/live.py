"""Live decoding: every method on one prompt, on this machine. Shows texts and counts, never a speedup."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from typing import Any

from flashspec.decoding.generate import Output, generate
from flashspec.decoding.method import METHODS, build
from flashspec.decoding.models import Models
from flashspec.parameters import parse_value
from flashspec.sampling import Sampling
from flashspec.study.frames import DataFrame, framed

COUNTS = ("emitted", "forwards", "rounds", "drafted", "accepted")


def decode_all(models: Models, prompt: str | list[int], sampling: Sampling, tokens: int, **changes: Any) -> dict[str, Output]:
    """One decode of every method that these models offer, by name, with these fields of Method, such as k.

    Of `exits` a method takes as many as it has, from the lowest; where these are fewer it keeps its own. Methods that verify
    are decoded once more with an eager final token, under the name "METHOD, eager".
    """
    exits, found = parse_value("exits", tuple[int, ...], changes.pop("exits", ())), dict[str, Output]()
    for (name, method), end in product(METHODS.items(), ("deferred", "eager")):
        if end == "eager" and method.writer_is_target:
            continue
        enough = len(exits) >= len(method.exits)
        own = exits[: len(method.exits)] if enough else method.exits
        method = replace(method, **changes, finalize=end, exits=own)
        try:
            build(method, models, context=1)
        except (FileNotFoundError, ValueError):  # exits need enough layers of our own, heads a weight or to be built
            continue
        found[name + ", eager" * (end == "eager")] = generate(models, prompt, method, sampling, max_new_tokens=tokens)
    return found


def table(outputs: Mapping[str, Output]) -> DataFrame:
    """One line per method: its counts, the two ratios read from them, and whether its text is the baseline's."""
    lines = [[name, *(getattr(output.stats, each) for each in (*COUNTS, "tar"))] for name, output in outputs.items()]
    found = framed(lines, ["method", *COUNTS, "TAR"]).set_index("method")
    same = [output.tokens == outputs["baseline"].tokens for output in outputs.values()]
    return found.assign(**{"share accepted": found["accepted"] / found["drafted"], "same text": same}).round(2)


def beside(outputs: Mapping[str, Output]) -> dict[str, Output]:
    """Plain decoding, and the first of these methods that was decoded with an eager and a deferred final token."""
    name = next(name for name in ("flash", "dense", "self_speculation", "lookup") if name in outputs)
    return {"plain decoding": outputs["baseline"], "eager": outputs[f"{name}, eager"], "deferred": outputs[name]}
