"""Which technique pays, and by how much, for costs and acceptances that are given as plain numbers.

The book's decision page has the same formulas in `book/_static/decision.js`, which a test holds against these.
"""

from __future__ import annotations

from operator import attrgetter
from typing import Any, NamedTuple

from flashspec import theory

MOST = 16  # longest draft considered


class Setting(NamedTuple):
    """What a decision depends on; `data/decision.toml` gives each number its unit, its range and its meaning.

    Milliseconds: `step`, `draft`, `first`, `middle`. Target steps: `slope`, `final`. Acceptances are of a token given that all
    before it were accepted. `exits` is 0, 1 or 2.
    """

    step: float
    slope: float
    final: float
    draft: float
    share: float
    alpha: float
    gain: float
    loss: float
    k: int
    exits: int
    first: float
    first_alpha: float
    first_rest: float
    middle: float
    middle_alpha: float
    whole_alpha: float
    whole_rest: float


class Best(NamedTuple):
    """The best schedule: speedup over plain decoding, tokens of a burst, and tokens that wait for the whole model."""

    speedup: float
    k: int
    wait: int = 0


def priced(s: Setting, draft: float, rest: float, eager: int) -> theory.Costs:
    """Rounds whose checks cost `rest` of the target's; an eager final token is read by itself, not as one more row."""
    return theory.Costs(draft, lambda k: rest * s.step * (1.0 + s.slope * (k - eager)), eager * s.final * s.step)


def headed(s: Setting, flash: int, eager: int) -> theory.Costs:
    """Rounds with the draft's dense head, or with FlashHead (Amdahl 1967)."""
    return priced(s, s.draft / theory.amdahl(s.share, s.gain) if flash else s.draft, 1.0, eager)


def at(s: Setting, flash: int, alpha: float, k: int) -> float:
    """Speedup over plain decoding with a deferred final token where the dense head is accepted with alpha."""
    return theory.speedup(theory.tokens_per_check(alpha * (1.0 - s.loss) if flash else alpha, k), headed(s, flash, 0), k, s.step)


def best(alpha: float, costs: theory.Costs, step: float) -> Best:
    """The fastest of all draft lengths."""
    found = [Best(theory.speedup(theory.tokens_per_check(alpha, k), costs, k, step), k) for k in range(1, MOST + 1)]
    return max(found, key=attrgetter("speedup"))


def hierarchy(s: Setting) -> Best:
    """The fastest schedule of a first stage, a verifier in between and the whole target."""
    checks: list[theory.Check] = [s.middle, lambda rows: s.whole_rest * s.step * (1.0 + s.slope * rows)]
    rate, (burst, wait) = theory.scheduled(s.first, checks, [s.middle_alpha, s.whole_alpha])
    return Best(s.step * rate, burst, wait)


def even(s: Setting, flash: int, k: int) -> float | None:
    """The dense head's acceptance at which speculation costs what plain decoding does; None where none is enough."""
    needed = theory.break_even(theory.tokens_per_check(s.alpha, k), headed(s, flash, 0), k, s.step).acceptance
    most = 1.0 - s.loss if flash else 1.0
    return None if needed is None or needed > most else needed / most


def decision(s: Setting) -> dict[str, Any]:
    """Speedups over plain decoding and what they depend on; None for exits that are not asked for.

    `plain` is in tokens a second. `dense`, `flash` and `even` (with the faster head) are at the given k; the other entries are at
    the best draft length or schedule. `flash_even` is the acceptance that FlashHead needs to be as fast as the dense head at the
    dense head's best k.
    """
    kept = s.alpha * (1.0 - s.loss)
    dense, flash = headed(s, 0, 0), headed(s, 1, 0)
    slow, fast = best(s.alpha, dense, s.step), best(kept, flash, s.step)
    won = 1 if fast.speedup > slow.speedup else 0
    top = fast if won else slow
    matched = theory.tokens_per_check(s.alpha, slow.k) * theory.round_time(flash, slow.k) / theory.round_time(dense, slow.k)
    alone = best(s.first_alpha, priced(s, s.first, s.first_rest, 0), s.step) if s.exits else None
    deep = hierarchy(s) if s.exits == 2 else None
    single = max(top.speedup, alone.speedup) if alone else top.speedup
    return {
        "plain": 1000.0 / s.step,
        "dense": at(s, 0, s.alpha, s.k),
        "flash": at(s, 1, s.alpha, s.k),
        "even": even(s, won, s.k),
        "even_best": even(s, won, top.k),
        "dense_best": slow,
        "flash_best": fast,
        "flash_won": won,
        "flash_gain": fast.speedup / slow.speedup,
        "flash_even": theory.acceptance_for(matched, slow.k),
        "deferral": top.speedup / best(kept if won else s.alpha, headed(s, won, 1), s.step).speedup,
        "exit": alone,
        "exit_gain": alone.speedup / top.speedup if alone else None,
        "hierarchy": deep,
        "hierarchy_gain": deep.speedup / single if deep else None,
    }
