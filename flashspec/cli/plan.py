"""`flashspec plan`: measure the parts here, then say whether to speculate, and how."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import click

from flashspec.cli.flags import NAMED, PRECISION, PROMPTS, K, Value, busy, given, option, with_flags, with_options
from flashspec.decoding.generate import own_method
from flashspec.decoding.models import REFERENCE, load, own_draft
from flashspec.measure import clock
from flashspec.measure.costs import PairCosts
from flashspec.measure.planning import (
    FEWEST,
    Acceptance,
    Given,
    Question,
    advise,
    head_cases,
    observe,
    ranked,
    shape_costs,
    stated_costs,
)
from flashspec.measure.prompts import load_prompts
from flashspec.models.memory import device_named
from flashspec.models.synthetic import SHAPES
from flashspec.provenance import usable_cores
from flashspec.study.advice import estimate, head_lines, lines, machine
from flashspec.study.parameters import parse_value

HEADS = {"head": ("dense", "int8", "flash"), "probes": (32, 64, 128, 256), "shortlist": (512, 2048)}
HERE = "measured on this machine"
GIVEN = {"acceptance": "given, the same for every head"}
ENDING = 3.0  # seconds kept for the program's start and for the intervals
Found = tuple[Question, PairCosts, Acceptance, dict[str, str]]


def is_shape(name: str) -> bool:
    """Whether a name is that of a published shape without weights."""
    shipped = name in REFERENCE["target"] | REFERENCE["draft"]
    return not shipped and name.lower().removesuffix("-awq") in map(str.lower, SHAPES)


def evidence(options: Mapping[str, Any], question: Question) -> Found:
    """The final question, its costs and acceptance, and where each of them comes from."""
    rates, names = options["acceptance"], (options["target"], options["draft"])
    acceptance = None if rates is None else Given(rates)
    if options["times"]:
        pairs = (piece.partition("=") for piece in options["times"].split(","))
        costs = stated_costs({name.strip(): parse_value("times", float, value) / 1000 for name, _, value in pairs})
        return question, costs, _needed(acceptance, "times say nothing about the text"), {"costs": "stated", **GIVEN}
    if any(map(is_shape, names)):
        return _of_shapes(options, _needed(acceptance, "shapes say nothing about the text"), question)
    return _of_models(options, acceptance, question)


def _of_models(options: Mapping[str, Any], acceptance: Given | None, question: Question) -> Found:
    """Measured within the question's time limit, with an estimate on standard error after every turn."""
    until, load_before = clock.now() + question.seconds - ENDING, os.getloadavg()[0]
    busy("loading models")
    models = load(*(options[name] for name in ("target", "draft", "dtype", "device", "weights")))
    if options["head"] is None and own_method(models) == "dense":
        question = replace(question, head=tuple(head for head in question.head if not head.startswith("flash")))
        say("no FlashHead has been built for this draft: planned without; `flashspec heads build` builds one")
    prompts = load_prompts(options["prompts"], question.per_kind, models)[: 1 if acceptance else None]
    if not acceptance and len(prompts) < FEWEST:
        raise ValueError(f"an interval needs at least {FEWEST} texts, got {len(prompts)}: give more --prompts, or --acceptance")
    costs, each = PairCosts((), question.timed), ""
    known: Acceptance | None = acceptance
    for costs, texts in observe(models, question, prompts, until, say):
        found: Acceptance = acceptance or texts
        known, each = found, f"{texts.length} tokens for each of {len(prompts)} prompts"
        say(estimate(ranked(costs, found, question.methods)[0], len(costs.turns)))
    say(machine(load_before, usable_cores(), costs.spread))
    if known is None or len(costs.turns) < FEWEST:
        needed = f"{len(costs.turns)} of the {FEWEST} turns that an interval needs"
        raise ValueError(f"no advice: only {needed} fit into {question.seconds:g} s; give more --seconds")
    told = {"acceptance": f"replayed on the target's own texts, {each}"}
    return question, costs, known, {"costs": f"{HERE} in {len(costs.turns)} turns", **(GIVEN if acceptance else told)}


def say(line: str) -> None:
    """Progress, on standard error."""
    click.echo(line, err=True)


def _needed(acceptance: Given | None, why: str) -> Given:
    if acceptance is None:
        raise ValueError(f"{why}: give --acceptance as well, one rate or one for each position")
    return acceptance


def _of_shapes(options: Mapping[str, Any], acceptance: Given, question: Question) -> Found:
    """Predicted from the device's memory bandwidth, which cancels out of the speedup."""
    names = (options["target"], options["draft"])
    odd = [name for name in names if not is_shape(name)]
    if odd:
        raise ValueError(f"{odd[0]} is no published shape and the other model is one: give two shapes, or two checkpoints")
    rate = clock.roof(str(device_named(options["device"])))
    told = f"predicted from the bytes of the shapes at {rate / 1e9:.3g} GB/s, which memory gives here; a check costs a step"
    return question, shape_costs(*names, rate), acceptance, {"costs": told, **GIVEN}


def draft_of(options: Mapping[str, Any]) -> str:
    """The named draft, or else the target's own; ValueError where costs need one and there is none."""
    named, target = options["draft"], options["target"]
    found = own_draft(target) if named == "auto" else named
    if not found and not options["times"]:
        raise ValueError(f"no draft belongs to {target!r} by name: give --draft")
    return found or named


def asked(options: Mapping[str, Any], defaults: Mapping[str, Any]) -> Question:
    """The question of a command line; for shapes or stated times the default head is the dense one."""
    found = {**defaults, **given(Question, options)}
    bare = options["times"] or any(map(is_shape, (options["target"], options["draft"])))
    if bare and found.setdefault("head", ("dense",)) != ("dense",):
        raise ValueError("times and shapes tell nothing about heads: give two checkpoints, and heads are timed here")
    return Question(**found)


RATES = Value(tuple[float, ...])
PAIR = with_options(
    option("--target", default="reference", help=f"{NAMED}, or a published shape such as Qwen3-32B."),
    option("--draft", default="auto", help="auto (the target's own), or a model or shape as --target."),
    option("--acceptance", type=RATES, metavar="RATES", help="Known acceptance: one rate, or one per drafted token, by commas."),
    option("--times", metavar="PARTS", help="Known times in ms, such as step=60,draft=6.7,check=60."),
    PROMPTS,
    *PRECISION,
    with_flags(Question),
)


@click.group("plan", invoke_without_command=True)
@PAIR
@click.pass_context
def command(ctx: click.Context, **options: Any) -> None:
    """Say whether to speculate on this machine, with which k, head and final token, and predict the speedup.

    Each part of a round is timed here; acceptance is counted on the target's own texts, or taken from --acceptance. Published
    shapes (Qwen3-32B, LLaMA-65B, OPT-66B, ...) need no weights.
    """
    if ctx.invoked_subcommand is None:
        options["draft"] = draft_of(options)
        question, costs, acceptance, sources = evidence(options, asked(options, {}))
        click.echo("\n".join(lines(advise(costs, acceptance, question.methods), sources)))
        return
    lost = [name for name in ctx.params if ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE]
    if lost:
        raise click.UsageError(f"write --{lost[0].replace('_', '-')} behind `{ctx.invoked_subcommand}`")


@command.command("heads")
@K
@PAIR
def heads(k: int, **options: Any) -> None:
    """Say which vocabulary head pays on this draft; costs and tokens per check are measured here.

    A cheap head pays if its tokens per check, over the dense head's, exceed (1 + nu kappa) / (1 + kappa): the time of its round
    over the dense head's. kappa is the drafting time over the rest of a round with the dense head, nu a drafted token's time
    over one with the dense head.
    """
    options["draft"] = draft_of(options)
    question = replace(asked(options, HEADS), max_k=k)
    if "dense" not in question.head or len(question.writers) < 2:
        raise ValueError("heads are compared with the dense one: name dense and at least one other in --head")
    question, costs, acceptance, sources = evidence(options, question)
    click.echo("\n".join(head_lines(head_cases(costs, acceptance, question.writers, k), sources)))
