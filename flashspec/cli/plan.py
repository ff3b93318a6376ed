"""`flashspec plan`: measure the parts here, then say whether to speculate, with which k, head and finalisation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import click

from flashspec.cli.flags import DRAFT, PRECISION, PROMPTS, K, Value, given, option, with_flags, with_options
from flashspec.decoding.models import REFERENCE, load
from flashspec.measure.costs import PairCosts, cuts_of, shape_costs
from flashspec.measure.planning import Acceptance, Given, Question, advise, head_cases, observe, stated_costs
from flashspec.measure.prompts import load_prompts
from flashspec.models.synthetic import LABEL, SHAPES
from flashspec.study.advice import head_lines, lines
from flashspec.study.parameters import parse_value

HEADS = {"heads": ("dense", "int8", "flash"), "probes": (32, 64, 128, 256), "shortlists": (512, 2048)}
HERE = "measured on this machine"
GIVEN = {"acceptance": "given, the same for every head"}
Found = tuple[PairCosts, Acceptance, dict[str, str]]


def is_shape(name: str) -> bool:
    """Whether a name stands for a published shape without weights."""
    shipped = name in REFERENCE["target"] | REFERENCE["draft"]
    return not shipped and name.lower().removesuffix("-awq") in map(str.lower, SHAPES)


def evidence(options: Mapping[str, Any], question: Question) -> Found:
    """Costs and acceptance of what was asked about, and where each comes from."""
    rates, names = options["acceptance"], (options["target"], options["draft"])
    acceptance = None if rates is None else Given(rates)
    if options["times"]:
        pairs = (piece.partition("=") for piece in options["times"].split(","))
        costs = stated_costs({name.strip(): parse_value("times", float, value) / 1000 for name, _, value in pairs})
        return costs, _needed(acceptance, "times say nothing about the text"), {"costs": "stated", **GIVEN}
    if any(map(is_shape, names)):
        return _of_shapes(names, _needed(acceptance, LABEL), question)
    models = load(*(options[name] for name in ("target", "draft", "dtype", "device", "weights")))
    costs, texts = observe(models, question, load_prompts(options["prompts"], question.per_kind, models))
    told = f"replayed on the target's own texts, {question.new_tokens} tokens for each of {question.per_kind} prompts a kind"
    return costs, acceptance or texts, {"costs": HERE, **(GIVEN if acceptance else {"acceptance": told})}


def _needed(acceptance: Given | None, why: str) -> Given:
    if acceptance is None:
        raise ValueError(f"{why}: give --acceptance as well, one rate or one for each position")
    return acceptance


def _of_shapes(names: tuple[str, str], acceptance: Given, question: Question) -> Found:
    odd = [name for name in names if not is_shape(name)]
    if odd:
        raise ValueError(f"{odd[0]} is no published shape and the other model is one: give two shapes, or two checkpoints")
    cuts = cuts_of(*names)
    where = ", ".join(cut.label for cut in cuts)
    click.echo(f"timing {where} on this machine; large shapes take minutes", err=True)
    costs = shape_costs(cuts, question.writers, question.timed, question.repeats)
    return costs, acceptance, {"costs": f"{HERE}, {LABEL}: {where}", **GIVEN}


def asked(options: Mapping[str, Any], defaults: Mapping[str, Any]) -> Question:
    """The question of a command line, about the dense head where shapes or times are given and no heads."""
    found = {**defaults, **given(Question, options)}
    bare = options["times"] or any(map(is_shape, (options["target"], options["draft"])))
    return Question(**({"heads": ("dense",)} | found if bare else found))


RATES = Value(tuple[float, ...])
PAIR = with_options(
    option("--target", default="reference", help="A shipped model, a checkpoint folder or a published shape."),
    DRAFT,
    option("--head", "--heads", "heads", type=Value(tuple[str, ...]), help="Heads of the draft, by commas; default dense,flash."),
    option("--acceptance", type=RATES, metavar="RATES", help="Acceptance you know: one rate, or one a position, by commas."),
    option("--times", metavar="PARTS", help="Costs you know, in ms: step=60,draft=6.7,check=60."),
    PROMPTS,
    *PRECISION,
    with_flags(Question, skip=("heads",)),
)


@click.group("plan", invoke_without_command=True)
@PAIR
@click.pass_context
def command(ctx: click.Context, **options: Any) -> None:
    """Say whether to speculate here, with which k, head and finalisation, and what it is predicted to bring.

    Costs are measured on this machine, part by part; tokens a check come from the target's own texts, or from --acceptance.
    Published shapes (Qwen3-32B, LLaMA-65B, OPT-66B, ...) need no weights.
    """
    if ctx.invoked_subcommand is None:
        question = asked(options, {})
        costs, acceptance, sources = evidence(options, question)
        click.echo("\n".join(lines(advise(costs, acceptance, question.methods), sources)))
        return
    lost = [name for name in ctx.params if ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE]
    if lost:
        raise click.UsageError(f"write --{lost[0].replace('_', '-')} behind `{ctx.invoked_subcommand}`")


@command.command("heads")
@K
@PAIR
def heads(k: int, **options: Any) -> None:
    """Say which vocabulary head pays on this draft, by the cheap-head gate: costs and tokens a check measured here.

    A cheap head pays if it keeps more of the dense head's tokens a check than (1 + nu kappa) / (1 + kappa), its round over
    the dense head's: kappa is the drafts' time over the rest of a round with the dense head, nu a drafted token's time over
    one with the dense head.
    """
    if options["times"]:
        raise ValueError("--times tells nothing about heads: leave it out, and they are timed here")
    question = replace(asked(options, HEADS), max_k=k)
    if "dense" not in question.heads or len(question.writers) < 2:
        raise ValueError("heads are compared with the dense one: name dense and at least one other in --heads")
    costs, acceptance, sources = evidence(options, question)
    click.echo("\n".join(head_lines(head_cases(costs, acceptance, question.writers, k), sources)))
