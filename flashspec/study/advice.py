"""A plan as text: what to run, the predicted speedup, and what would have to change."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from flashspec.decoding.method import Method
from flashspec.measure.costs import name_of
from flashspec.measure.planning import Forecast, HeadCase

WIDE = 2.0
VARIES = 0.2  # of the median step, between the fastest and the slowest turn of a machine that is called idle


def setting(method: Method) -> str:
    """What to run."""
    return f"k = {method.k}, {name_of(method)} head, final token {method.finalize}"


def ms(seconds: float) -> str:
    """Seconds as text in milliseconds."""
    return f"{1000 * seconds:.3g} ms"


def columns(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """A small table as lines of text; the first row holds the column heads."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def machine(load: float, cores: int, spread: float = 0.0) -> str:
    """How idle the machine was: its load before the run, and the spread of plain decoding over the turns, where known."""
    told = f"a load of {load:.1f} on {cores} cores before the run" + (f"; turns lie {spread:.0%} apart" if spread else "")
    return f"this machine is busy, measure again when it is idle: {told}" if load > cores / 2 or spread > VARIES else told


def estimate(found: tuple[Method, float], turns: int) -> str:
    """The estimate after this many turns, without an interval."""
    method, speed = found
    return f"{'first estimate' if turns == 1 else f'after {turns} turns'}: {setting(method)}: about {speed:.2f}x plain decoding"


def lines(found: Sequence[Forecast], sources: Mapping[str, str]) -> Iterator[str]:
    """The recommendation, which is the first forecast, and a table of all; `sources` say where numbers come from."""
    best, k = found[0], found[0].method.k
    speed = "{:.2f}x plain decoding (95 % interval {:.2f} to {:.2f})".format(*best.speedup)
    yield f"{verdict(best)} {setting(best.method)}: predicted {speed}, {best.rate:.3g} tokens/s"
    names = {"draft": f"{k} drafts"}
    spent = [f"{names.get(name, name)} {ms(time)}" for name, time in best.parts.items() if time or name == "draft"]
    yield f"a round: {' + '.join(spent)}; {best.tar:.2f} tokens a check; plain decoding {ms(best.step)} a token"
    acceptance, tar, draft = best.needs
    first = "no acceptance is enough" if acceptance is None else f"acceptance {acceptance:.2f}"
    last = "not even a free draft pays" if draft is None else f"a draft step of {ms(draft)}"
    yield f"break-even at k = {k}, each alone: {first}, {tar:.2f} tokens a check, {last}"
    if best.parts["verify"] < best.step:
        yield "beware: a check was timed shorter than one plain token, so part of this gain is how single rows were timed"
    rows = [["head", "k", "final token", "tokens/s", "x plain", "95 % interval"]]
    for each in found:
        (value, low, high), method = each.speedup, each.method
        who = [name_of(method), str(method.k), method.finalize]
        rows.append([*who, f"{each.rate:.3g}", f"{value:.2f}", f"{low:.2f} to {high:.2f}"])
    yield from columns([*rows, ["plain decoding", "", "", f"{1 / best.step:.3g}", "1", ""]])
    yield "from: " + "; ".join(f"{name} {source}" for name, source in sources.items())


def verdict(best: Forecast) -> str:
    """Whether to speculate; no advice where the interval is wider than a factor of two."""
    if best.speedup.high > WIDE * best.speedup.low:
        return "no advice: the interval is wider than a factor of two, measure longer or more texts; the best so far:"
    if best.speedup.value < 1.0:
        return "do not speculate; even the best setting loses,"
    return "speculate:" if best.speedup.low > 1.0 else "no gain shown (the interval holds 1); the best would be"


def head_lines(cases: Sequence[HeadCase], sources: Mapping[str, str]) -> Iterator[str]:
    """The head to use, the reason and the runners-up, each compared with the dense head."""
    best, *others = cases
    why = "no cheap head keeps enough; " if name_of(best.method) == "dense" else ""
    yield f"take the {name_of(best.method)} head at k = {best.method.k}: {why}{reason_of(best)}"
    yield from (f"runner-up: {name_of(case.method)}: {reason_of(case)}" for case in others)
    yield "from: " + "; ".join(f"{name} {source}" for name, source in sources.items())


def reason_of(case: HeadCase) -> str:
    """The cheap-head gate in one clause (SlimSpec, arXiv 2605.10453)."""
    if name_of(case.method) == "dense":
        share = case.kappa / (1 + case.kappa)
        return f"what the others are compared with; {ms(case.seconds)} a drafted token, drafting {share:.1%} of a round"
    return (
        f"{'pays' if case.pays else 'does not pay'}, predicted {case.gain:.3f}x the dense head's tokens/s; "
        f"{ms(case.seconds)} a drafted token, {case.nu:.2f} of one with the dense head; "
        f"keeps {case.kept:.1%} of the dense head's tokens a check and must keep more than {case.gate:.1%} to pay"
    )
