"""`flashspec plan`: measure the parts here, then say whether to speculate, with which k, head and finalisation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import click

from flashspec.cli.flags import COUNT, At, given, with_flags
from flashspec.decoding.method import Method
from flashspec.decoding.models import REFERENCE, Models, load
from flashspec.measure.costs import PairCosts, Setting, cuts_of, measure_costs, name_of, shape_costs
from flashspec.measure.planning import Acceptance, Given, Question, advise, head_cases, observe, stated_costs
from flashspec.measure.prompts import load_prompts
from flashspec.models.synthetic import LABEL, SHAPES
from flashspec.study.advice import Stored, head_lines, lines, stored_counts
from flashspec.study.parameters import parse_value

HEADS = ("dense", "int8", "flash")
HERE = "measured on this machine"
GIVEN = {"acceptance": "given, the same for every head"}
STORED = {"reference": "main", "shallow": "shallow", "designed": "designed"}
Found = tuple[PairCosts, Acceptance, dict[str, str]]


def is_shape(name: str) -> bool:
    """Whether a name stands for a published shape without weights."""
    shipped = name in REFERENCE["target"] | REFERENCE["draft"]
    return not shipped and name.lower().removesuffix("-awq") in map(str.lower, SHAPES)


def evidence(options: Mapping[str, Any], question: Question) -> Found:
    """Costs and acceptance of what was asked about, and where each comes from."""
    rates, names = options["acceptance"], (options["target"], options["draft"])
    acceptance = None if rates is None else Given(parse_value("acceptance", tuple[float, ...], rates))
    if options["times"]:
        pairs = (piece.partition("=") for piece in options["times"].split(","))
        costs = stated_costs({name.strip(): parse_value("times", float, value) / 1000 for name, _, value in pairs})
        return costs, _needed(acceptance, "times say nothing about the text"), {"costs": "stated", **GIVEN}
    if any(map(is_shape, names)):
        return _of_shapes(names, _needed(acceptance, LABEL), question)
    models = _models(options)
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


def _models(options: Mapping[str, Any]) -> Models:
    return load(options["target"], options["draft"], options["dtype"], options["device"], options["weights"])


def asked(options: Mapping[str, Any], defaults: Mapping[str, Any]) -> Question:
    """The question of a command line, about the dense head where shapes or times are given and no heads."""
    found = {**defaults, **given(Question, options)}
    bare = options["times"] or any(map(is_shape, (options["target"], options["draft"])))
    return Question(**({"heads": ("dense",)} | found if bare else found))


SHOWN: dict[str, Any] = {"default": "auto", "show_default": True}
MODEL: dict[str, Any] = {"default": "reference", "show_default": True, "help": "A shipped model, a checkpoint folder or a shape."}
PAIR = (
    with_flags(Question, skip=("heads",)),
    click.option("--target", **MODEL),
    click.option("--draft", **MODEL),
    click.option("--head", "--heads", "heads", metavar="NAMES", help="Heads of the draft, by commas; default dense,flash."),
    click.option("--acceptance", metavar="RATES", help="Acceptance you know: one rate, or one a position, by commas."),
    click.option("--times", metavar="PARTS", help="Costs you know, in ms: step=60,draft=6.7,check=60."),
    click.option("--prompts", type=At(exists=True, dir_okay=False), help="A prompts file instead of the shipped one."),
    click.option("--dtype", **SHOWN, help="auto, float32 or bfloat16."),
    click.option("--device", **SHOWN, help="auto, cpu or cuda."),
    click.option("--weights", **SHOWN, help="auto, int4 or dense, for 4-bit checkpoints."),
)


def with_pair(function: Any) -> Any:
    """The flags of a pair and of a Question."""
    for option in reversed(PAIR):
        function = option(function)
    return function


@click.group("plan", invoke_without_command=True)
@with_pair
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
@click.option("--k", type=COUNT, default=4, show_default=True, help="Drafted tokens a check.")
@click.option("--tar", type=click.Choice(("auto", "stored", "replay")), default="auto", show_default=True, help="Whose counts.")
@with_pair
def heads(k: int, tar: str, **options: Any) -> None:
    """Say which vocabulary head pays on this draft, by the cheap-head gate: costs measured here, tokens a check from tables.

    A cheap head pays if it keeps more of the dense head's tokens a check than (1 + nu kappa) / (1 + kappa), its round over
    the dense head's: kappa is the drafts' time over the rest of a round with the dense head, nu a drafted token's time over
    one with the dense head.
    """
    if options["times"]:
        raise ValueError("--times tells nothing about heads: leave it out, and they are timed here")
    question = replace(asked(options, {"heads": HEADS, "probes": (32, 64, 128, 256), "shortlists": (512, 2048)}), max_k=k)
    if "dense" not in question.heads or len(question.writers) < 2:
        raise ValueError("heads are compared with the dense one: name dense and at least one other in --heads")
    table, writers = stored(options, question, tar), question.writers
    if table is None:
        costs, acceptance, sources = evidence(options, question)
    else:
        acceptance, writers = table, table.held(writers, k)
        sources = {"costs": HERE, "acceptance": f"from the stored tables {table.name}"}
        costs = _costs(options, question, writers)
    click.echo("\n".join(head_lines(head_cases(costs, acceptance, writers, k), sources)))
    lost = ", ".join(name_of(writer) for writer in question.writers if writer not in writers)
    if lost:
        click.echo(f"left out: {lost}: not in the stored tables at k = {k}; --tar replay judges them here")


def stored(options: Mapping[str, Any], question: Question, tar: str) -> Stored | None:
    """The stored table to take tokens a check from; None to replay. "auto" takes it if it has the shipped pair at k."""
    known = options["acceptance"] is None and options["target"] == "reference" and options["draft"] in STORED
    if tar == "replay" or (tar == "auto" and not known):
        return None
    try:
        table = stored_counts(STORED.get(options["draft"], options["draft"]), question.sampling)
        table.held(question.writers, question.max_k)
    except ValueError:
        if tar == "stored":
            raise
        return None
    return table


def _costs(options: Mapping[str, Any], question: Question, writers: list[Method]) -> PairCosts:
    """Costs of these writers, measured here behind the first prompt."""
    models = _models(options)
    setting = Setting(load_prompts(options["prompts"], 1, models)[0].ids, question.sampling)
    return measure_costs(models, writers, question.timed, setting, question.repeats)
