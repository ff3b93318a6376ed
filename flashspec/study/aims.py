"""What the study aimed at, what came out and what limits it: the numbers choose the words, so a page stays true either way."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from flashspec.decoding.models import SHIPPED
from flashspec.measure.bench import Interval
from flashspec.study import heights, readings
from flashspec.study.experiments import exit_training
from flashspec.study.experiments.exit_training import depths_of
from flashspec.study.live import Shown

if TYPE_CHECKING:
    from pandas import DataFrame

SPECULATION, SHALLOW_HEAD, PROJECTION, STEP, PLAIN, ASSISTED = 1.5, 1.05, 8.0, 1.25, 1.5, 3.0
OFF_SPECULATION, OFF_HEAD = 0.05, 0.02
EXITS = {2: 0.70, 4: 0.78}
LOSS, QUANTISED, MAIN_DRAFT, AGREEMENT, ROWS, CLOSED = 3.2, 0.02, 0.55, 0.97, 0.20, 0.03
QWEN = "qwen3-0.6b"
DECODING = {"temperature": 1.0, "rule": "coupling", "finalize": "deferred"}


class Aim(NamedTuple):
    """One line of a table of aims, in words; `limit` says what bounds the figure, reached or not."""

    aim: str
    asked: str
    found: str
    reached: str
    limit: str


def reached(found: Interval, wanted: float) -> str:
    """Whether a median is as large as wanted, and whether its interval leaves that open."""
    word = "yes" if found.value >= wanted else "no"
    return f"{word}, within the interval" if found.low <= wanted <= found.high else word


def exits(frame: DataFrame, target: str = "reference") -> DataFrame:
    """Acceptance of a target's exits at temperature 1: on the table's prompts, the shipped one on held-out modules too."""
    shares = readings.where(heights.exits(frame), against=frame["layers"].max()).set_index("depth")["overlap_share"]
    shipped = target == "reference"
    judge = shipped_exit if shipped else another_exit
    found = [judge(depth, wanted, float(shares[depth])) for depth, wanted in EXITS.items() if depth in shares.index]
    return table([*found, *(held_out() if shipped else ())])


def shipped_exit(depth: int, wanted: float, prompts: float) -> Aim:
    """One exit, judged by the held-out modules of the model card; the curve of its training says how it came about."""
    found = card("target")[f"accept_{depth}"]
    said = f"{found:.2f} on held-out modules, {prompts:.2f} on the prompts"
    return Aim(f"acceptance of exit {depth}", f"at least {wanted:g}", said, "yes" if found >= wanted else "no", course(depth))


def another_exit(depth: int, wanted: float, prompts: float) -> Aim:
    """One exit of a target whose card and training are not known here."""
    said = f"{prompts:.2f} on the prompts"
    return Aim(f"acceptance of exit {depth}", f"at least {wanted:g}", said, "yes" if prompts >= wanted else "no", "")


def held_out() -> Iterable[Aim]:
    """What else the reference pair was to reach on modules that no training read, from the model cards."""
    target, draft = card("target"), card("narrow")
    loss, worse = target[f"loss_{depths_of(target)[-1]}"], target["awq_perplexity_ratio"] - 1
    heads = [head for head in draft["flash_head"] if head["scored_share"] <= ROWS]
    best = max(head["agreement"] for head in heads)
    lines = (
        ("loss of the target", f"at most {LOSS:g} nats a token", f"{loss:.2f} nats", loss <= LOSS),
        ("perplexity lost to 4 bits", f"at most {100 * QUANTISED:g} %", f"{100 * worse:.1f} %", worse <= QUANTISED),
        ("acceptance of the main draft", f"at least {MAIN_DRAFT:g}", f"{draft['accept']:.2f}", draft["accept"] >= MAIN_DRAFT),
        (
            "agreement of the main draft's FlashHead",
            f"at least {AGREEMENT:g} on at most {100 * ROWS:g} % of the rows",
            f"{best:.4f}",
            best >= AGREEMENT,
        ),
    )
    for aim, asked, found, good in lines:
        yield Aim(aim, asked, found, "yes" if good else "no", "")


def card(model: str) -> dict[str, Any]:
    """The held-out figures of a shipped model's card."""
    text = (SHIPPED / model / "README.md").read_text(encoding="utf-8")
    return json.loads(text.split("```json")[1].split("```")[0])["held_out"]


def course(depth: int) -> str:
    """How an exit's acceptance and the losses moved from the first to the last point of the target's training, in words."""
    rows = list(exit_training.measure(exit_training.Params()))
    loss, overlap = ({(row.step, row.depth): getattr(row, name) for row in rows} for name in ("loss", "overlap"))
    first, last, whole = rows[0].step, rows[-1].step, rows[0].layers
    apart = [f"{loss[step, depth] - loss[step, whole]:.2f}" for step in (first, last)]
    return (
        f"in training acceptance went from {overlap[first, depth]:.2f} to {overlap[last, depth]:.2f} while the whole model's "
        f"loss went from {loss[first, whole]:.2f} to {loss[last, whole]:.2f} nats: the exit's loss lay {apart[0]} above it at "
        f"first and {apart[1]} at last"
    )


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
