"""What keeps a hierarchy from a wanted gain: the best it could do with a stage for nothing, and the acceptance it would take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from flashspec.study.depths import prices, tiers
from flashspec.study.heights import tuned
from flashspec.theory.depth import Prices, Tiers, best_rate, needed_alpha, plain_rate, topped

if TYPE_CHECKING:
    from pandas import DataFrame


class Gift(NamedTuple):
    """A present to HiSpec alone: stages that take no time (the writer is 0), or a whole model that keeps all it is handed."""

    name: str
    free: tuple[int, ...] = ()
    sure: bool = False


GIFTS = (
    Gift("as it is"),
    Gift("drafting for nothing", free=(0,)),
    Gift("middle checks for nothing", free=(1,)),
    Gift("whole model keeps all", sure=True),
)


class Case(NamedTuple):
    """HiSpec's best schedule with one gift, over tuned self-speculation and over plain decoding, which get none."""

    gift: str
    over_self: float
    over_plain: float


class Field(NamedTuple):
    """What a table says about one temperature and rule: prices, and every schedule with its pooled acceptance."""

    layers: int
    prices: Prices
    hispec: list[Tiers]
    alone: list[Tiers]

    @property
    def plain(self) -> float:
        return plain_rate(self.layers, self.prices)

    @property
    def self_speculation(self) -> float:
        return best_rate(self.alone, self.layers, self.prices)


def field_of(frame: DataFrame, layers: int) -> Field:
    """The field of a table of `hispec_grid` that holds one temperature and rule."""
    return Field(layers, prices(frame, layers), tiers(frame, "hispec", layers), tiers(frame, "self_speculation", layers))


def cases(frame: DataFrame, layers: int) -> list[Case]:
    """HiSpec with each gift, tuned again each time: bounds by the closed form, at measured prices and acceptance."""
    field = field_of(frame, layers)
    alone, plain, found = field.self_speculation, field.plain, []
    for gift in GIFTS:
        best = best_rate(topped(field.hispec, 1.0) if gift.sure else field.hispec, layers, field.prices, gift.free)
        found.append(Case(gift.name, best / alone, best / plain))
    return found


def asked(frame: DataFrame, layers: int, over: str, gain: float) -> str:
    """What a gain over "self_speculation" or "plain" decoding asks of the whole model's agreement, in words."""
    field = field_of(frame, layers)
    goal = gain * float(getattr(field, over))
    needed, now = needed_alpha(field.hispec, layers, field.prices, goal), best_alpha(field)
    if needed is None:
        return f"{gain:.2f}× is out of reach even if the whole model kept all that the middle hands up"
    return (
        f"{gain:.2f}× takes a whole model that keeps {needed:.2f} of what is put to it; at its best schedule it keeps {now:.2f}"
    )


def best_alpha(field: Field) -> float:
    """The chance with which the whole model keeps a token at the schedule that is foretold to be fastest."""
    return max(field.hispec, key=lambda each: best_rate([each], field.layers, field.prices)).alphas[-1]


def words(found: Sequence[Case], column: str) -> str:
    """The bounds in one sentence."""
    return ", ".join(f"{case.gift} {getattr(case, column):.2f}×" for case in found)


def enough(found: Sequence[Case], column: str, goal: float) -> str:
    """The gifts that reach a goal, in words."""
    return " or ".join(case.gift for case in found if getattr(case, column) >= goal) or "none of these"


PARTS = ("drafting", "middle checks", "full checks")


def budget(frame: DataFrame, methods: Sequence[str], **setting: Any) -> DataFrame:
    """Milliseconds a final token of every method at its tuned schedule: parts by stage, and what the whole took when timed.

    Parts are what a drafted token and a check cost by themselves, times how many there were; the prompt's reading is left out.
    """
    import pandas

    return pandas.DataFrame([_spent(tuned(frame, method, **setting)) for method in methods], index=list(methods))


def _spent(rows: DataFrame) -> dict[str, float]:
    ms, deep = 1e3 / rows["emitted"].sum(), bool((rows["check_2_seconds"] > 0).any())
    low, high = ((rows[f"actions_{i}"] * rows[f"check_{i}_seconds"]).sum() for i in (1, 2))
    written = (rows["drafted"] * rows["draft_seconds"]).sum()
    alone = 0.0 if rows["actions_1"].any() else (rows["rounds"] * rows["draft_seconds"]).sum()
    whole = (rows["seconds"] - rows["prompts"] * rows["prefill_seconds"]).sum()
    parts = (written, low if deep else 0.0, (high if deep else low) + alone)
    return {**{name: ms * float(part) for name, part in zip(PARTS, parts, strict=True)}, "measured": ms * float(whole)}


def check_share(frame: DataFrame, **setting: Any) -> float:
    """A middle check's time over a full check's, at HiSpec's tuned schedule."""
    rows = tuned(frame, "hispec", **setting)
    return float((rows["check_1_seconds"] / rows["check_2_seconds"]).median())


def stands(frame: DataFrame, method: str, level: int, **setting: Any) -> float:
    """Chance that a waiting token stood at a level of a method's tuned schedule, given that all before it stood."""
    rows = tuned(frame, method, **setting)
    return float(rows[f"kept_{level}"].sum() / max(rows[f"decided_{level}"].sum(), 1))


def most_settled(alpha: float) -> float:
    """Mean tokens that a check settles at most, however many wait: 1 / (1 - alpha) (Leviathan et al. 2023, equation 1)."""
    return 1.0 / (1.0 - alpha) if alpha < 1.0 else float("inf")
