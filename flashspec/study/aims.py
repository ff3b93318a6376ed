"""What the study aimed at, what came out and what limits it: the numbers choose the words, so a page stays true either way."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from flashspec.measure.bench import Interval, Refused
from flashspec.study import limits, readings
from flashspec.study.experiment import stored
from flashspec.study.live import Shown
from flashspec.study.readings import DENSE, Missing
from flashspec.theory import amdahl

if TYPE_CHECKING:
    from pandas import DataFrame

SPECULATION, SHALLOW_HEAD, PROJECTION, STEP, PLAIN, ASSISTED = 1.5, 1.05, 8.0, 1.25, 1.5, 3.0
OFF_SPECULATION, OFF_HEAD = 0.05, 0.02
CLOSED = 0.03
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


def foretold(aim: str, frame: DataFrame, compared: tuple[readings.Methods, readings.Methods], wanted: float, draft: str) -> Aim:
    """A draft's gain, the first of two methods over the second, that was to be within a share of what its parts foretell."""
    (above, below), setting = compared, {"draft": draft, **DECODING}
    off = limits.off_gain(frame, above, below, **setting)
    widest = 100 * max(limits.spread(frame, method, **setting) for method in (above, below))
    limit = f"parts are timed beside a decode, not in it; the slowest of its turns took {widest:.0f} % more than the fastest"
    return Aim(aim, f"within {100 * wanted:g} %", f"{100 * off:+.1f} %", "yes" if abs(off) <= wanted else "no", limit)


def chain(projection: DataFrame, step: DataFrame, whole: DataFrame, drafts: Sequence[str] = ("main", "shallow")) -> DataFrame:
    """From the projection to the text: every aim of the three chapters; those of texts are of the first and the last draft."""
    return table([*parts(projection, step), *texts(whole, drafts[0], drafts[-1])])


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


def texts(frame: DataFrame, main: str, shallow: str) -> Iterable[Aim]:
    """Decoding at temperature 1 with a deferred final token, under both rules and with both drafts."""
    for rule, title in (("coupling", "Gumbel coupling"), ("speculative", "speculative sampling")):
        setting = {"draft": main, **DECODING, "rule": rule}
        yield speculation(f"dense draft over plain decoding, {title}", frame, setting)
    for temperature, title in ((1.0, "temperature 1"), (0.0, "greedy")):
        setting = {"draft": shallow, **DECODING, "temperature": temperature}
        yield shallow_head(f"FlashHead over dense head, one-layer draft, {title}", frame, setting)
    gain = "measured over foretold gain of {}, two-layer draft"
    yield foretold(gain.format("the dense draft over plain decoding"), frame, (DENSE, "baseline"), OFF_SPECULATION, main)
    yield foretold(gain.format("FlashHead over the dense head"), frame, ("flash", DENSE), OFF_HEAD, main)


def speculation(aim: str, frame: DataFrame, setting: dict[str, Any]) -> Aim:
    """Plain decoding is to be beaten; the parts say which acceptance that takes, and where the time of a round goes."""

    def limit() -> str:
        found = limits.limits(frame, DENSE, SPECULATION, **setting)
        prompt = f"reading the prompt takes {100 * limits.prompt_share(frame, DENSE, **setting):.0f} % of the time"
        return (
            f"{prompt}; {limits.round_words(frame, DENSE, **setting)}; by these parts alone, {limits.words(found, SPECULATION)}"
        )

    return at_least(aim, SPECULATION, lambda: readings.method_gain(frame, DENSE, "baseline", **setting), limit)


def shallow_head(aim: str, frame: DataFrame, setting: dict[str, Any]) -> Aim:
    """A faster head is to pay where it weighs most."""
    return at_least(
        aim,
        SHALLOW_HEAD,
        lambda: readings.method_gain(frame, "flash", DENSE, **setting),
        lambda: limits.head_words(limits.of_head(frame, "flash", DENSE, **setting)),
    )


def inside(ledger: DataFrame, frame: DataFrame) -> DataFrame:
    """A ledger that closes, and flashspec over transformers in bfloat16: the aims of the chapter inside a round."""
    modes = (("plain decoding", "plain", PLAIN), ("with the same draft and k", "assisted", ASSISTED))
    return table([closed(ledger), *(peer(title, mode, wanted, frame) for title, mode, wanted in modes)])


def closed(ledger: DataFrame) -> Aim:
    """The parts of every instrumented run are to add up to its wall time."""
    off = readings.closure(ledger)
    return Aim(
        "the parts of a run add up to its wall time",
        f"within {100 * CLOSED:g} %",
        f"{100 * off:.1f} % in the worst run",
        "yes" if off <= CLOSED else "no",
        "what no part claims is the host's",
    )


def peer(title: str, mode: str, wanted: float, frame: DataFrame) -> Aim:
    """One mode of both engines."""
    return at_least(
        f"flashspec over transformers, {title}",
        wanted,
        lambda: readings.peer_gain(frame, mode, "bfloat16"),
        lambda: "the same models, prompts, k and threads on both sides",
    )


def four_bits(root: Path | None = None) -> str:
    """Dense speculation over plain decoding on the 4-bit target as it is stored, in words, or how to measure it."""
    from flashspec.study.experiments.end_to_end import INT4

    found = stored("end_to_end", root, INT4)
    if found is None:
        return "not measured here yet; flashspec run end_to_end --preset int4 measures and stores it"
    setting = {"draft": "main", **DECODING}
    plain = readings.rate(found.frame, "baseline", **setting)
    return f"{readings.verdict(found.frame, DENSE, 'baseline', **setting)}, over {plain:.0f} tokens a second on {found.machine}"


def table(aims: Iterable[Aim]) -> DataFrame:
    """Aims under one another."""
    import pandas

    return pandas.DataFrame(list(aims), columns=Aim._fields).set_index("aim")


def missed(aims: DataFrame) -> str:
    """How many aims were missed, in words."""
    count = int((~aims["reached"].str.startswith("yes")).sum())
    were = "was" if count == 1 else "were"
    return f"{count} of {len(aims)} aims {were} not reached" if count else f"all {len(aims)} aims were reached"


def shown(aims: DataFrame) -> Shown:
    """A table of aims as a page shows it, with whole sentences."""
    import pandas

    with pandas.option_context("display.max_colwidth", None):
        return Shown(aims.reset_index().to_html(index=False, classes="aims", justify="left", border=0))
