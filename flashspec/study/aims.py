"""What the study aimed at, what came out and what limits it: the numbers choose the words, so a page stays true either way."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from flashspec.decoding.models import SHIPPED
from flashspec.measure.bench import Interval, Refused
from flashspec.study import heights, limits, readings
from flashspec.study.live import Shown
from flashspec.study.readings import DENSE, Missing
from flashspec.theory import amdahl

if TYPE_CHECKING:
    from pandas import DataFrame

SPECULATION, SHALLOW_HEAD, PROJECTION, STEP, PLAIN, ASSISTED = 1.5, 1.05, 8.0, 1.25, 1.5, 3.0
OFF_SPECULATION, OFF_HEAD = 0.05, 0.02
EXITS = {2: 0.70, 4: 0.78}
QWEN = "qwen3-0.6b"
DECODING = {"temperature": 1.0, "rule": "coupling", "finalize": "deferred"}


class Aim(NamedTuple):
    """One line of a table of aims, in words; `limit` says what bounds the figure, reached or not."""

    aim: str
    asked: str
    found: str
    reached: str
    limit: str


def at_least(aim: str, wanted: float, measure: Callable[[], Interval], limit: Callable[[], str]) -> Aim:
    """A ratio that was to be this large; where none may be given, the reason stands in its place."""
    try:
        found = measure()
        return Aim(aim, f"at least {wanted:g}×", readings.words(found), reached(found, wanted), limit())
    except (Refused, Missing) as error:
        return Aim(aim, f"at least {wanted:g}×", str(error), "no", "")


def reached(found: Interval, wanted: float) -> str:
    """Whether a median is as large as wanted, and whether its interval leaves that open."""
    word = "yes" if found.value >= wanted else "no"
    return f"{word}, within the interval" if found.low <= wanted <= found.high else word


def foretold(aim: str, frame: DataFrame, above: readings.Methods, below: readings.Methods, wanted: float) -> Aim:
    """A gain of the main draft that was to be within a share of what parts and acceptance foretell."""
    setting = {"draft": "main", **DECODING}
    off = limits.off_gain(frame, above, below, **setting)
    widest = 100 * max(limits.spread(frame, method, **setting) for method in (above, below))
    limit = f"parts are timed beside a decode, not in it; the slowest of its turns took {widest:.0f} % more than the fastest"
    return Aim(aim, f"within {100 * wanted:g} %", f"{100 * off:+.1f} %", "yes" if abs(off) <= wanted else "no", limit)


def chain(projection: DataFrame, step: DataFrame, whole: DataFrame) -> DataFrame:
    """From the projection to the text: every aim of the three chapters."""
    return table([*parts(projection, step), *texts(whole)])


def parts(projection: DataFrame, step: DataFrame) -> Iterable[Aim]:
    """The projection and the draft step at Qwen3-0.6B's shape, against what bytes and Amdahl's law allow."""
    probes = readings.nearest_probes(projection, QWEN, 256)
    yield at_least(
        "projection at Qwen3-0.6B's shape, FlashHead over dense",
        PROJECTION,
        lambda: readings.projection_gain(projection, QWEN, probes),
        lambda: f"the bytes allow {readings.bytes_ratio(projection, QWEN, probes):.1f}×",
    )
    share = readings.head_share(step, QWEN)
    yield at_least(
        "draft step at Qwen3-0.6B's shape, FlashHead over dense",
        STEP,
        lambda: readings.step_gain(step, QWEN, readings.nearest_probes(step, QWEN, 256)),
        lambda: f"the head is {100 * share:.0f} % of the step, so a head for nothing gives {amdahl(share, float('inf')):.2f}×",
    )


def texts(frame: DataFrame) -> Iterable[Aim]:
    """Decoding at temperature 1 with a deferred final token, under both rules and with both drafts."""
    for rule, title in (("coupling", "Gumbel coupling"), ("speculative", "speculative sampling")):
        setting = {"draft": "main", **DECODING, "rule": rule}
        yield speculation(f"dense draft over plain decoding, {title}", frame, setting)
    for temperature, title in ((1.0, "temperature 1"), (0.0, "greedy")):
        setting = {"draft": "shallow", **DECODING, "temperature": temperature}
        yield shallow_head(f"FlashHead over dense head, one-layer draft, {title}", frame, setting)
    gain = "measured over foretold gain of {}, two-layer draft"
    yield foretold(gain.format("the dense draft over plain decoding"), frame, DENSE, "baseline", OFF_SPECULATION)
    yield foretold(gain.format("FlashHead over the dense head"), frame, "flash", DENSE, OFF_HEAD)


def speculation(aim: str, frame: DataFrame, setting: dict[str, Any]) -> Aim:
    """Plain decoding is to be beaten; the parts say which acceptance that takes, and where the time of a round goes."""

    def limit() -> str:
        found = limits.limits(frame, DENSE, SPECULATION, **setting)
        return f"{limits.round_words(frame, DENSE, **setting)}; {limits.words(found, SPECULATION)}"

    return at_least(aim, SPECULATION, lambda: readings.method_gain(frame, DENSE, "baseline", **setting), limit)


def shallow_head(aim: str, frame: DataFrame, setting: dict[str, Any]) -> Aim:
    """A faster head is to pay where it weighs most."""
    return at_least(
        aim,
        SHALLOW_HEAD,
        lambda: readings.method_gain(frame, "flash", DENSE, **setting),
        lambda: limits.head_words(limits.of_head(frame, "flash", DENSE, **setting)),
    )


def peers(frame: DataFrame) -> DataFrame:
    """flashspec over transformers in bfloat16: the aims of the chapter inside a round."""
    return table([peer("plain decoding", "plain", PLAIN, frame), peer("with the same draft and k", "assisted", ASSISTED, frame)])


def peer(title: str, mode: str, wanted: float, frame: DataFrame) -> Aim:
    """One mode of both engines."""
    return at_least(
        f"flashspec over transformers, {title}",
        wanted,
        lambda: readings.peer_gain(frame, mode, "bfloat16"),
        lambda: "the same models, prompts, k and threads on both sides",
    )


def exits(frame: DataFrame, target: str = "reference") -> DataFrame:
    """Acceptance of a target's exits at temperature 1: on the table's prompts, the shipped one on held-out modules too."""
    shares = readings.where(heights.exits(frame), against=frame["layers"].max()).set_index("depth")["overlap_share"]
    judge = shipped_exit if target == "reference" else another_exit
    return table(judge(depth, wanted, float(shares[depth])) for depth, wanted in EXITS.items() if depth in shares.index)


def shipped_exit(depth: int, wanted: float, prompts: float) -> Aim:
    """One exit, judged by the held-out modules of the model card; the curve of its training says how it came about."""
    found = card()[f"accept_{depth}"]
    said = f"{found:.2f} on held-out modules, {prompts:.2f} on the prompts"
    return Aim(f"acceptance of exit {depth}", f"at least {wanted:g}", said, "yes" if found >= wanted else "no", course(depth))


def another_exit(depth: int, wanted: float, prompts: float) -> Aim:
    """One exit of a target whose card and training are not known here."""
    said = f"{prompts:.2f} on the prompts"
    return Aim(f"acceptance of exit {depth}", f"at least {wanted:g}", said, "yes" if prompts >= wanted else "no", "")


def card() -> dict[str, float]:
    """The held-out figures of the shipped target's model card."""
    text = (SHIPPED / "target" / "README.md").read_text(encoding="utf-8")
    return json.loads(text.split("```json")[1].split("```")[0])["held_out"]


def course(depth: int) -> str:
    """How an exit's acceptance and the losses moved from the first to the last point of the target's training, in words."""
    lines = (SHIPPED / "target" / "curve.jsonl").read_text(encoding="utf-8").splitlines()
    first, last = json.loads(lines[0]), json.loads(lines[-1])
    whole = max(int(name[5:]) for name in last if name.startswith("loss_"))
    moved = {name: f"{first[name]:.2f} to {last[name]:.2f}" for name in last if name != "step"}
    apart = [f"{line[f'loss_{depth}'] - line[f'loss_{whole}']:.2f}" for line in (first, last)]
    return (
        f"in training acceptance went from {moved[f'accept_{depth}']} while the whole model's loss went from "
        f"{moved[f'loss_{whole}']} nats: the exit's loss lay {apart[0]} above it at first and {apart[1]} at last"
    )


def table(aims: Iterable[Aim]) -> DataFrame:
    """Aims under one another."""
    import pandas

    return pandas.DataFrame(list(aims), columns=Aim._fields).set_index("aim")


def missed(aims: DataFrame) -> str:
    """How many aims were missed, in words."""
    count = int((~aims["reached"].str.startswith("yes")).sum())
    return f"{count} of {len(aims)} aims were not reached" if count else f"all {len(aims)} aims were reached"


def shown(aims: DataFrame) -> Shown:
    """A table of aims as a page shows it, with whole sentences."""
    import pandas

    with pandas.option_context("display.max_colwidth", None):
        return Shown(aims.reset_index().to_html(index=False, classes="aims", justify="left", border=0))
