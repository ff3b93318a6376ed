"""Numbers that the reproduced works print, each with where it stands, so that no page types one."""

from __future__ import annotations

from typing import NamedTuple


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
