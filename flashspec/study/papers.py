"""Numbers that the reproduced works print, each with where it stands, so that no page types one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from pandas import DataFrame


class Claim(NamedTuple):
    """A printed number: what it is, its value, its unit, and the place that prints it."""

    what: str
    value: float
    unit: str
    source: str


ABSTRACT = "Ma and Wang 2026, abstract"

THESIS = {
    "projection_dense_ms": Claim("isolated draft projection, dense", 2.493, "ms", ABSTRACT),
    "projection_flash_ms": Claim("isolated draft projection, FlashHead", 0.577, "ms", ABSTRACT),
    "projection": Claim("isolated draft projection, FlashHead over dense", 4.321, "x", ABSTRACT),
    "draft_step": Claim("complete draft-model step, FlashHead over dense", 1.108, "x", ABSTRACT),
    "eager_dense": Claim("end to end, ordinary, dense draft", 9.769, "tokens/s", ABSTRACT),
    "eager_flash": Claim("end to end, ordinary, FlashHead draft", 9.823, "tokens/s", ABSTRACT),
    "eager": Claim("end to end, ordinary, FlashHead over dense", 1.006, "x", ABSTRACT),
    "deferred_dense": Claim("end to end, deferred final token, dense draft", 10.731, "tokens/s", ABSTRACT),
    "deferred_flash": Claim("end to end, deferred final token, FlashHead draft", 11.374, "tokens/s", ABSTRACT),
    "deferred": Claim("end to end, deferred final token, FlashHead over dense", 1.060, "x", ABSTRACT),
}


HISPEC_ABSTRACT = "Kumar et al. 2025, abstract"

HISPEC = {
    "over_self": Claim("HiSpec over single-layer speculation, average", 1.28, "x", HISPEC_ABSTRACT),
    "over_baseline": Claim("HiSpec over plain decoding, what this study asks for", 1.6, "x", "this study"),
}


def hispec(name: str) -> float:
    """A number that HiSpec is held against."""
    return HISPEC[name].value


def thesis(name: str) -> float:
    """One number of the thesis's abstract."""
    return THESIS[name].value


def deferral(method: str) -> float:
    """What deferring the final token gave the thesis: deferred over ordinary tokens per second of one method."""
    return thesis(f"deferred_{method}") / thesis(f"eager_{method}")


def head_share() -> float:
    """Share of the thesis's dense draft step that its head takes, from the time saved and the step's speedup."""
    from flashspec.theory import implied_step

    saved = thesis("projection_dense_ms") - thesis("projection_flash_ms")
    return thesis("projection_dense_ms") / implied_step(saved, thesis("draft_step"))


class PublishedDraft(NamedTuple):
    """A draft that a paper printed all parts of: its shape's name, tokens a check, milliseconds a step, tokens a second."""

    shape: str
    layers: int
    tar: float
    step_ms: float
    rate: float
    source: str


YAN_TABLE = "Yan et al. 2024, LLaMA-65B as target"
YAN_DEEP = PublishedDraft("Sheared-LLaMA-1.3B", 24, 3.81, 13.13, 23.10, YAN_TABLE)
YAN_WIDE = PublishedDraft("NoFT-Wide-1.3B", 12, 3.70, 6.69, 32.59, YAN_TABLE)
YAN_TARGET = "LLaMA-65B"
CLOSE = 0.5  # percent by which a computed number may differ from a printed one
YAN = {
    "headline": Claim("designed draft over an existing one, LLaMA-65B and OPT-66B", 1.60, "x", "Yan et al. 2024, abstract"),
    "experiments": Claim("experiments run", 350, "", "Yan et al. 2024, abstract"),
    "tuned": Claim("designed draft against a fine-tuned target, Vicuna-33B", 1.45, "x", "Yan et al. 2024, up to 45 %"),
}


class Contest(NamedTuple):
    """Tokens a second of the deep and the wide draft on one data set at T = 1, and the gain in percent printed beside them."""

    data: str
    deep: float
    wide: float
    gain: float


YAN_SAMPLED = (
    Contest("MMLU", 12.06, 24.32, 101.6),
    Contest("HellaSwag", 12.30, 24.32, 97.7),
    Contest("Chatbot Arena", 11.45, 24.18, 111.8),
)


def implied_round() -> tuple[int, float]:
    """Drafted tokens a check, and milliseconds of a check, that both printed drafts imply: two rounds, two unknowns."""
    deep, wide = (1e3 * draft.tar / draft.rate for draft in (YAN_DEEP, YAN_WIDE))
    k = round((deep - wide) / (YAN_DEEP.step_ms - YAN_WIDE.step_ms))
    return k, (deep - k * YAN_DEEP.step_ms + wide - k * YAN_WIDE.step_ms) / 2


class FixedCosts(NamedTuple):
    """What a model of fixed costs makes of the thesis's four rates.

    Exactly: tokens a check with the dense head over those with FlashHead, and drafted tokens a check for each token that a
    check settles. With one TAR for both heads instead: milliseconds a token of the closest model, by rate.
    """

    tokens_ratio: float
    k_over_tokens: float
    closest: dict[str, float]


RATES = ("eager_dense", "eager_flash", "deferred_dense", "deferred_flash")


def thesis_fixed_costs() -> FixedCosts:
    """Solve round = k d + check (+ a pass of the target when eager) for the four rates, the pass equal for both heads.

    Two heads and two ways to finalise leave one number over when TAR is equal: the closest model misses every rate by a
    quarter of their interaction.
    """
    ms = {name: 1e3 / thesis(name) for name in RATES}
    saved = thesis("projection_dense_ms") - thesis("projection_flash_ms")
    ratio = (ms["eager_flash"] - ms["deferred_flash"]) / (ms["eager_dense"] - ms["deferred_dense"])
    k = (ratio * ms["deferred_dense"] - ms["deferred_flash"]) / saved
    apart = (ms["eager_dense"] - ms["eager_flash"] - ms["deferred_dense"] + ms["deferred_flash"]) / 4
    signs = {"eager_dense": -1, "eager_flash": 1, "deferred_dense": 1, "deferred_flash": -1}
    return FixedCosts(ratio, k, {name: ms[name] + signs[name] * apart for name in RATES})


def computed() -> DataFrame:
    """What the papers printed beside what the throughput model gives from the parts they printed; `off` in percent."""
    import pandas

    table = pandas.DataFrame([*_of_decoding(), *_of_thesis()], columns=["work", "what", "unit", "printed", "computed"])
    return table.assign(off=100 * (table["computed"] / table["printed"] - 1))


def _of_decoding() -> list[tuple[Any, ...]]:
    from flashspec.theory import Costs, throughput

    k, check = implied_round()
    deep, wide = (1e3 * throughput(draft.tar, Costs(draft.step_ms, check), k) for draft in (YAN_DEEP, YAN_WIDE))
    rates = ((YAN_DEEP, deep), (YAN_WIDE, wide))
    lines: list[tuple[Any, ...]] = [("decoding", draft.shape, "tokens/s", draft.rate, rate) for draft, rate in rates]
    lines.append(("decoding", "wide over deep draft", "x", YAN_WIDE.rate / YAN_DEEP.rate, wide / deep))
    return lines + [("decoding", f"gain at T = 1, {c.data}", "x", 1 + c.gain / 100, c.wide / c.deep) for c in YAN_SAMPLED]


def _of_thesis() -> list[tuple[Any, ...]]:
    closest = thesis_fixed_costs().closest
    return [("thesis", THESIS[name].what, THESIS[name].unit, THESIS[name].value, 1e3 / closest[name]) for name in RATES]
