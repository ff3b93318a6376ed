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
STORED = {"reference": "main", "shallow": "shallow", "designed": "designed"}
Found = tuple[PairCosts, Acceptance, dict[str, str]]


def is_shape(name: str) -> bool:
    """Whether a name stands for a published shape without weights."""
    return name not in REFERENCE["target"] | REFERENCE["draft"] and name.lower().removesuffix("-awq") in map(str.lower, SHAPES)


def rates(text: str | None) -> Given | None:
    """`--acceptance`: one rate, or one a position, by commas."""
    return None if text is None else Given(parse_value("acceptance", tuple[float, ...], text))


def stated(text: str) -> PairCosts:
    """`--times`: step=60,draft=6.7,check=60 in milliseconds."""
    pairs = (piece.partition("=") for piece in text.split(","))
    found = {name.strip(): parse_value("times", float, value) / 1000 for name, _, value in pairs}
    return stated_costs(found)


def evidence(options: Mapping[str, Any], question: Question) -> Found:
    """Costs and acceptance of what was asked about, and where each comes from."""
    acceptance, names = rates(options["acceptance"]), (options["target"], options["draft"])
    if options["times"]:
        return stated(options["times"]), _needed(acceptance, "times say nothing about the text"), {"costs": "stated", **GIVEN}
    if any(map(is_shape, names)):
        return _of_shapes(names, _needed(acceptance, LABEL), question)
    models = _models(options)
    costs, texts = observe(models, question, load_prompts(options["prompts"], question.per_kind, models))
    told = f"replayed on the target's own texts, {question.new_tokens} tokens for each of {question.per_kind} prompts a kind"
    return costs, acceptance or texts, {"costs": HERE, **(GIVEN if acceptance else {"acceptance": told})}


GIVEN = {"acceptance": "given, the same for every head"}


def _needed(acceptance: Given | None, why: str) -> Given:
    if acceptance is None:
        raise ValueError(f"{why}: give --acceptance as well, one rate or one for each position")
    return acceptance


def _of_shapes(names: tuple[str, str], acceptance: Given, question: Question) -> Found:
    if not all(map(is_shape, names)):
        odd = next(name for name in names if not is_shape(name))
        raise ValueError(f"{odd} is no published shape and the other model is one: give two shapes, or two checkpoints")
    cuts = cuts_of(*names)
    where = ", ".join(cut.label for cut in cuts)
    click.echo(f"timing {where} on this machine; large shapes take minutes", err=True)
    costs = shape_costs(cuts, question.writers, question.timed, question.repeats)
    return costs, acceptance, {"costs": f"{HERE}, {LABEL}: {where}", **GIVEN}


def _models(options: Mapping[str, Any]) -> Models:
    return load(options["target"], options["draft"], options["dtype"], options["device"], options["weights"])


def asked(options: Mapping[str, Any], defaults: Mapping[str, Any]) -> Question:
    """The question of a command line; shapes and stated times are asked about the dense head unless heads are named."""
    found = {**defaults, **given(Question, options)}
    bare = options["times"] or any(map(is_shape, (options["target"], options["draft"])))
    return Question(**({"heads": ("dense",)} | found if bare else found))


PAIR = (
    click.option("--target", default="reference", show_default=True, help="A shipped model, a checkpoint folder or a shape."),
    click.option("--draft", default="reference", show_default=True, help="A shipped model, a checkpoint folder or a shape."),
    click.option("--head", "--heads", "heads", metavar="NAMES", help="Heads of the draft, by commas; default dense,flash."),
    click.option("--acceptance", metavar="RATES", help="Acceptance you know: one rate, or one a position, by commas."),
    click.option("--times", metavar="PARTS", help="Costs you know, in ms: step=60,draft=6.7,check=60."),
    click.option("--prompts", type=At(exists=True, dir_okay=False), help="A prompts file instead of the shipped one."),
    click.option("--dtype", default="auto", show_default=True, help="auto, float32 or bfloat16."),
    click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda."),
    click.option("--weights", default="auto", show_default=True, help="auto, int4 or dense, for 4-bit checkpoints."),
)


def with_pair(function: Any) -> Any:
    """The flags of a pair and of a Question."""
    for option in reversed(PAIR):
        function = option(function)
    return with_flags(Question, skip=("heads",))(function)


@click.group("plan", invoke_without_command=True)
@with_pair
@click.pass_context
def command(ctx: click.Context, **options: Any) -> None:
    """Say whether to speculate here, with which k, head and finalisation, and what it is predicted to bring.

    Costs are measured on this machine, part by part; tokens a check come from the target's own texts, or from --acceptance.
    Published shapes (Qwen3-32B, LLaMA-65B, OPT-66B, ...) need no weights.
    """
    if ctx.invoked_subcommand is not None:
        return _refuse_flags(ctx)
    question = asked(options, {})
    costs, acceptance, sources = evidence(options, question)
    click.echo("\n".join(lines(advise(costs, acceptance, question.methods), sources)))
    return None


def _refuse_flags(ctx: click.Context) -> None:
    """Flags before a subcommand would be lost."""
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
    table = stored(options, question, tar)
    costs, acceptance, sources = _of_table(options, question, table) if table else evidence(options, question)
    writers = held(table, question.writers, k) if table else question.writers
    click.echo("\n".join(head_lines(head_cases(costs, acceptance, writers, k), sources)))
    lost = ", ".join(name_of(writer) for writer in question.writers if writer not in writers)
    if lost:
        click.echo(f"left out: {lost}: not in the stored tables at k = {k}; --tar replay judges them here")


def stored(options: Mapping[str, Any], question: Question, tar: str) -> Stored | None:
    """The stored table to take tokens a check from; None to replay. `tar` "auto" takes it if it has the shipped pair at k."""
    known = options["acceptance"] is None and options["target"] == "reference" and options["draft"] in STORED
    if tar == "replay" or (tar == "auto" and not known):
        return None
    try:
        table = stored_counts(STORED.get(options["draft"], options["draft"]), question.sampling)
        held(table, question.writers, question.max_k)
    except ValueError:
        if tar == "stored":
            raise
        return None
    return table


def _of_table(options: Mapping[str, Any], question: Question, table: Stored) -> Found:
    """Costs measured here, of the writers that the table has."""
    writers = held(table, question.writers, question.max_k)
    models = _models(options)
    place = Setting(load_prompts(options["prompts"], 1, models)[0].ids, question.sampling)
    costs = measure_costs(models, writers, question.timed, place, question.repeats)
    return costs, table, {"costs": HERE, "acceptance": f"from the stored tables {table.name}"}


def held(table: Stored, writers: list[Method], k: int) -> list[Method]:
    """The writers that a stored table has at k; ValueError where it has none beside the dense one."""
    found = table.found
    kept = [writer for writer in writers if (name_of(writer), k) in found]
    if len(kept) < 2 or all(name_of(writer) != "dense" for writer in kept):
        known = ", ".join(f"{name} at k = {size}" for name, size in sorted(found)) or "nothing"
        raise ValueError(f"the stored tables have {known}: choose among them, or use --tar replay")
    return kept
