"""`flashspec plan`: measure the parts here, then say whether to speculate, and how."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, cast

import click

from flashspec.cli.flags import COUNT, NAMED, PRECISION, PROMPTS, Value, busy, columns, given, option, with_flags
from flashspec.decoding.generate import lacks_flash
from flashspec.decoding.method import Method
from flashspec.decoding.models import REFERENCE, load, own_draft
from flashspec.measure import clock
from flashspec.measure.costs import PairCosts, name_of
from flashspec.measure.planning import (
    FEWEST,
    Forecast,
    HeadCase,
    Question,
    advise,
    head_cases,
    observe,
    ranked,
    replayed_on,
    shape_costs,
    stated_costs,
    stated_rates,
)
from flashspec.measure.prompts import load_prompts
from flashspec.models.memory import device_named
from flashspec.models.synthetic import SHAPES
from flashspec.parameters import parse_value
from flashspec.provenance import usable_cores

WIDE = 2.0
VARIES = 0.2  # of the median step, between the fastest and the slowest turn of a machine that is called idle
HEADS = {"head": ("dense", "int8", "flash"), "probes": (32, 64, 128, 256), "shortlist": (512, 2048)}
GIVEN = {"acceptance": "given, the same for every head"}
ENDING = 2.0  # seconds kept for the intervals
say = partial(click.echo, err=True)
Options = Mapping[str, Any]
Found = tuple[Question, PairCosts, Any, dict[str, str]]


def shapes_in(options: Options) -> list[str]:
    """Which of target and draft are names of published shapes without weights."""
    shipped, known = REFERENCE["target"] | REFERENCE["draft"], set(map(str.lower, SHAPES))
    named = [options["target"], options["draft"]]
    return [name for name in named if name not in shipped and name.lower().removesuffix("-awq") in known]


def stated(options: Options, question: Question) -> Found:
    """Costs from stated times, or from the bytes of two shapes and this device's bandwidth."""
    if options["acceptance"] is None:
        raise ValueError("times and shapes say nothing about the text: give --acceptance as well")
    acceptance = stated_rates(options["acceptance"])
    if options["times"]:
        pairs = (piece.partition("=") for piece in options["times"].split(","))
        costs = stated_costs({name.strip(): parse_value("times", float, value) / 1000 for name, _, value in pairs})
        return question, costs, acceptance, {"costs": "stated", **GIVEN}
    if len(shapes_in(options)) < 2:
        raise ValueError(f"{shapes_in(options)[0]} is a published shape, the other model is none: give two shapes or two models")
    rate = clock.roof(str(device_named(options["device"])))
    told = f"predicted from the bytes of the shapes at {rate / 1e9:.3g} GB/s, which memory gives here; a check costs a step"
    return question, shape_costs(options["target"], options["draft"], rate), acceptance, {"costs": told, **GIVEN}


def measured(options: Options, question: Question) -> Found:
    """Costs, and acceptance unless it is given, within the question's seconds; an estimate after every turn."""
    began = click.get_current_context().obj or clock.now()
    until, load_before = began + question.seconds - ENDING, os.getloadavg()[0]
    busy("loading models")
    models = load(*(options[name] for name in ("target", "draft", "dtype", "device", "weights")))
    if options["head"] is None and (why := lacks_flash(models)):
        question = replace(question, head=tuple(head for head in question.head if not head.startswith("flash")))
        say(f"planned without FlashHead: {why}")
    known = None if options["acceptance"] is None else stated_rates(options["acceptance"])
    prompts = load_prompts(options["prompts"], question.per_kind, models)[: 1 if known else None]
    if not known and len(prompts) < FEWEST:
        raise ValueError(f"an interval needs at least {FEWEST} texts, got {len(prompts)}: give more --prompts, or --acceptance")
    costs, found = PairCosts((), question.timed), cast(Any, known)
    for turns, (costs, texts) in enumerate(observe(models, question, prompts, until, say)):
        if not known:
            length, found = len(texts[name_of(question.writers[0])][0]), replayed_on(texts)
        say(estimate(ranked(costs, found, question.methods)[0], turns))
    say(machine(load_before, usable_cores(), costs.spread))
    if len(costs.turns) < FEWEST:
        needed = f"{len(costs.turns)} of the {FEWEST} turns that an interval needs"
        raise ValueError(f"no advice: only {needed} fit into {question.seconds:g} s; give more --seconds")
    told = {"costs": f"measured on this machine in {len(costs.turns)} turns", **GIVEN}
    if not known:
        each = f"{length} tokens for each of {len(prompts)} prompts"
        told["acceptance"] = f"replayed on the target's own texts, {each}"
    return question, costs, found, told


def draft_of(options: Options) -> str:
    """The named draft, or else the target's own; ValueError where costs need one and there is none."""
    named, target = options["draft"], options["target"]
    found = own_draft(target) if named == "auto" else named
    if not found and not options["times"]:
        raise ValueError(f"no draft belongs to {target!r} by name: give --draft")
    return found or named


def setting(method: Method) -> str:
    """What to run."""
    return f"k = {method.k}, {name_of(method)} head, final token {method.finalize}"


def ms(seconds: float) -> str:
    """Seconds as text in milliseconds."""
    return f"{1000 * seconds:.3g} ms"


def machine(load: float, cores: int, spread: float = 0.0) -> str:
    """How idle the machine was: its load before the run, and the spread of plain decoding over the turns, where known."""
    told = f"a load of {load:.1f} on {cores} cores before the run" + (f"; turns differ by {spread:.0%}" if spread else "")
    return f"this machine is busy, measure again when it is idle: {told}" if load > cores / 2 or spread > VARIES else told


def estimate(found: tuple[Method, float], turns: int) -> str:
    """The estimate after this many turns, without an interval; the first is cold and from one text."""
    method, speed = found
    return f"{f'after turn {turns}' if turns else 'first estimate'}: {setting(method)}: about {speed:.2f}x plain decoding"


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


@click.command("plan")
@click.argument("what", type=click.Choice(["heads"]), required=False)
@option("--k", type=COUNT, help="With `plan heads`: drafted tokens per check, default 4.")
@option("--target", default="reference", help=f"{NAMED}, or a published shape such as Qwen3-32B.")
@option("--draft", default="auto", help="auto (the target's own), or a model or shape as --target.")
@option("--acceptance", type=Value(tuple[float, ...]), metavar="RATES", help="Known acceptance: one rate, or one a position.")
@option("--times", metavar="PARTS", help="Known times in ms, such as step=60,draft=6.7,check=60.")
@PROMPTS
@PRECISION
@with_flags(Question)
def command(what: str | None, k: int | None, **options: Any) -> None:
    """Say whether to speculate on this machine, with which k, head and final token, and predict the speedup.

    Each part of a round is timed here; acceptance is counted on the target's own texts, or taken from --acceptance. Published
    shapes (Qwen3-32B, LLaMA-65B, OPT-66B, ...) need no weights.

    `flashspec plan heads` says which vocabulary head pays on this draft. A cheap head pays if its tokens per check, over the
    dense head's, exceed (1 + nu kappa) / (1 + kappa): the time of its round over the dense head's. kappa is the drafting time
    over the rest of a round with the dense head, nu a drafted token's time over one with the dense head.
    """
    if k and not what:
        raise click.UsageError("--k goes with `plan heads`; a plan tries every k up to --max-k")
    options["draft"] = draft_of(options)
    bare = bool(options["times"] or shapes_in(options))
    asked = {**(HEADS if what else {}), **given(Question, options), **({"max_k": k or 4} if what else {})}
    if bare and asked.setdefault("head", ("dense",)) != ("dense",):
        raise ValueError("times and shapes tell nothing about heads: give two checkpoints, and heads are timed here")
    question = Question(**asked)
    if what and ("dense" not in question.head or len(question.writers) < 2):
        raise ValueError("heads are compared with the dense one: name dense and at least one other in --head")
    question, costs, acceptance, sources = (stated if bare else measured)(options, question)
    if what:
        told = head_lines(head_cases(costs, acceptance, question.writers, question.max_k), sources)
    else:
        told = lines(advise(costs, acceptance, question.methods), sources)
    click.echo("\n".join(told))
