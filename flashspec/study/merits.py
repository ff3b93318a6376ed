"""Readings of draft quality and of drafts on other targets: losses, choices, TAR, and how they go together."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from flashspec.study import winners
from flashspec.study.drafts import point_of_designed
from flashspec.study.ranks import correlation_words
from flashspec.study.readings import where, words
from flashspec.train.shipping import DESIGNED

if TYPE_CHECKING:
    from pandas import DataFrame

BY_ITSELF = {"perplexity": "perplexity", "right": "share of best tokens right", "chosen": "share of continuations found"}


def merits(frame: DataFrame, temperature: float) -> DataFrame:
    """One line a draft: perplexity, best tokens right and continuations found on held-out text, and TAR on the target's.

    The designed draft is left out where its own point of the family is there, so that no draft counts twice.
    """
    keys = ["draft", "layers", "body", "head_bytes"]
    twice = point_of_designed() in set(frame["draft"])
    once = frame[frame["draft"] != DESIGNED] if twice else frame
    sums = where(once, temperature=temperature).groupby(keys).sum(numeric_only=True).reset_index().set_index("draft")
    return sums.assign(
        perplexity=(sums["loss"] / sums["positions"]).map(math.exp),
        right=sums["right"] / sums["positions"],
        chosen=sums["chosen"] / sums["asked"].where(sums["asked"] > 0),
        tar=sums["emitted"] / sums["rounds"],
    )


def with_tar(frame: DataFrame, merit: str, temperature: float) -> str:
    """Rank correlation of a merit with TAR over the drafts, in words; perplexity counts as better the lower it is."""
    table = merits(frame, temperature)
    sign = -1 if merit == "perplexity" else 1
    return correlation_words(list(sign * table[merit]), list(table["tar"]))


def with_rate(quality: DataFrame, runs: DataFrame, column: str, temperature: float) -> str:
    """Rank correlation of a merit, of TAR or of depth (fewer layers count as better) with measured throughput, in words."""
    rates = winners.best(runs, temperature)["rate"]
    table = merits(quality, temperature)
    table = table.loc[[name for name in table.index if name in rates.index]]
    sign = -1 if column in ("perplexity", "layers", "body") else 1
    return correlation_words(list(sign * table[column]), list(rates[table.index]))


def on_target(frame: DataFrame, target: str) -> DataFrame:
    """The runs against one target."""
    return where(frame, target=target)


def targets(frame: DataFrame) -> list[str]:
    """The targets of a table, home first."""
    return list(dict.fromkeys(frame["target"]))


def kept(frame: DataFrame, draft: str, temperature: float) -> dict[str, dict[str, float]]:
    """TAR, tokens per second and speedup of a draft at its best k, by target."""
    found = {}
    for target in targets(frame):
        line = winners.best(on_target(frame, target), temperature).loc[draft]
        found[target] = {name: float(line[name]) for name in ("k", "tar", "rate", "speedup")}
    return found


def away_words(frame: DataFrame, draft: str, temperature: float) -> str:
    """What a draft brings on every target, home first, in words."""
    said = []
    for target, line in kept(frame, draft, temperature).items():
        gain = gain_words(frame, target, draft, temperature)
        said.append(f"on {target} TAR {line['tar']:.2f}, {line['rate']:.0f} tokens/s, {gain} plain decoding")
    return "; ".join(said)


def loss_words(frame: DataFrame, draft: str, temperature: float) -> str:
    """The targets on which a draft is not shown to be faster than plain decoding, in words."""
    gains = {target: winners.over_plain(on_target(frame, target), draft, temperature) for target in targets(frame)}
    lost = [target for target, gain in gains.items() if not gain.low > 1]
    return f"no gain is shown on {', '.join(lost)}" if lost else f"a gain is shown on all {len(gains)} targets"


def gain_words(frame: DataFrame, target: str, draft: str, temperature: float) -> str:
    """A draft's speedup on one target, in words."""
    return words(winners.over_plain(on_target(frame, target), draft, temperature))


def same_winner(frame: DataFrame, temperature: float) -> str:
    """Which draft is the fastest on each target, in words."""
    found: dict[str, Any] = {target: winners.winner(on_target(frame, target), temperature) for target in targets(frame)}
    return ", ".join(f"{draft} on {target}" for target, draft in found.items())
