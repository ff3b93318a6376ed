"""`flashspec plan`: measure the parts here, then say whether to speculate, with which k, head and finalisation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import click

from flashspec.cli.flags import DRAFT, PRECISION, PROMPTS, K, Value, given, option, with_flags, with_options
from flashspec.decoding.method import Method
from flashspec.decoding.models import REFERENCE, Models, load
from flashspec.measure.clock import Plan
from flashspec.measure.costs import PairCosts, Setting, measure_costs, name_of
from flashspec.measure.depths import cuts_of, shape_costs
from flashspec.measure.planning import Acceptance, Given, Question, advise, head_cases, observe, stated_costs
from flashspec.measure.prompts import load_prompts
from flashspec.models.synthetic import LABEL, SHAPES
from flashspec.study.advice import Stored, head_lines, lines, stored_counts
from flashspec.study.parameters import parse_value

HEADS = {"heads": ("dense", "int8", "flash"), "probes": (32, 64, 128, 256), "shortlists": (512, 2048)}
HERE = "measured on this machine"
GIVEN = {"acceptance": "given, the same for every head"}
STORED = {"reference": "main", "shallow": "shallow", "designed": "designed"}
Found = tuple[PairCosts, Acceptance, dict[str, str]]


def is_shape(name: str) -> bool:
    """Whether a name stands for a published shape without weights."""
    return name not in REFERENCE["target"] | REFERENCE["draft"] and name.lower().removesuffix("-awq") in map(str.lower, SHAPES)


def evidence(options: Mapping[str, Any], question: Question) -> Found:
    """Costs and acceptance of what was asked about, and where each comes from."""
    names = (options["target"], options["draft"])
    acceptance = Given(options["acceptance"]) if options["acceptance"] is not None else None
    bare = "times say nothing about the text" if options["times"] else LABEL if any(map(is_shape, names)) else ""
    if bare and acceptance is None:
        raise ValueError(f"{bare}: give --acceptance as well, one rate or one for each position")
    if acceptance and options["times"]:
        return stated(options["times"]), acceptance, {"costs": "stated", **GIVEN}
    if acceptance and bare:
        return _of_shapes(names, acceptance, question)
    models = _models(options)
    costs, texts = observe(models, question, load_prompts(options["prompts"], question.per_kind, models))
    told = f"replayed on the target's own texts, {question.new_tokens} tokens for each of {question.per_kind} prompts a kind"
    return costs, acceptance or texts, {"costs": HERE, **(GIVEN if acceptance else {"acceptance": told})}


def stated(text: str) -> PairCosts:
    """`--times`: step=60,draft=6.7,check=60 in milliseconds."""
    pairs = (piece.partition("=") for piece in text.split(","))
    return stated_costs({name.strip(): parse_value("times", float, value) / 1000 for name, _, value in pairs})


def _of_shapes(names: tuple[str, str], acceptance: Given, question: Question) -> Found:
    for odd in names:
        if not is_shape(odd):
            raise ValueError(f"{odd} is no published shape and the other model is one: give two shapes, or two checkpoints")
    cuts = cuts_of(*names)
    where = ", ".join(cut.label for cut in cuts)
    click.echo(f"timing {where} on this machine; large shapes take minutes", err=True)
    costs = shape_costs(cuts, question.writers, question.timed, Plan(question.repeats))
    return costs, acceptance, {"costs": f"{HERE}, {LABEL}: {where}", **GIVEN}


def _models(options: Mapping[str, Any]) -> Models:
    return load(*(options[name] for name in ("target", "draft", "dtype", "device", "weights")))


def asked(options: Mapping[str, Any], defaults: Mapping[str, Any]) -> Question:
    """The question of a command line; of the dense head for shapes and stated times, unless heads are named."""
    bare = options["times"] or any(map(is_shape, (options["target"], options["draft"])))
    return Question(**{**defaults, **({"heads": ("dense",)} if bare and not defaults else {}), **given(Question, options)})


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
    if ctx.invoked_subcommand is not None:
        lost = [name for name in ctx.params if ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE]
        if lost:
            raise click.UsageError(f"write --{lost[0].replace('_', '-')} behind `{ctx.invoked_subcommand}`")
        return
    question = asked(options, {})
    costs, acceptance, sources = evidence(options, question)
    click.echo("\n".join(lines(advise(costs, acceptance, question.methods), sources)))


@command.command("heads")
@K
@option("--tar", type=click.Choice(("auto", "stored", "replay")), default="auto", help="Whose counts.")
@PAIR
def heads(k: int, tar: str, **options: Any) -> None:
    """Say which vocabulary head pays on this draft, by the cheap-head gate: costs measured here, tokens a check from tables.

    A cheap head pays if it keeps more of the dense head's tokens a check than (1 + nu kappa) / (1 + kappa), its round over
    the dense head's: kappa is the drafts' time over the rest of a round with the dense head, nu a drafted token's time over
    one with the dense head.
    """
    if options["times"]:
        raise ValueError("--times tells nothing about heads: leave it out, and they are timed here")
    question = replace(asked(options, HEADS), max_k=k)
    if "dense" not in question.heads or len(question.writers) < 2:
        raise ValueError("heads are compared with the dense one: name dense and at least one other in --heads")
    table, writers = stored(options, question, tar)
    costs, acceptance, sources = _of_table(options, question, table, writers) if table else evidence(options, question)
    click.echo("\n".join(head_lines(head_cases(costs, acceptance, writers, k), sources)))
    lost = ", ".join(name_of(writer) for writer in question.writers if writer not in writers)
    if lost:
        click.echo(f"left out: {lost}: not in the stored tables at k = {k}; --tar replay judges them here")


def stored(options: Mapping[str, Any], question: Question, tar: str) -> tuple[Stored | None, list[Method]]:
    """The stored table to take tokens a check from, None to replay, and its writers.

    `tar` "auto" takes the table if it has the shipped pair at k.
    """
    known = options["acceptance"] is None and options["target"] == "reference" and options["draft"] in STORED
    if tar == "stored" or (tar == "auto" and known):
        try:
            table = stored_counts(STORED.get(options["draft"], options["draft"]), question.sampling)
            return table, held(table, question.writers, question.max_k)
        except ValueError:
            if tar == "stored":
                raise
    return None, question.writers


def _of_table(options: Mapping[str, Any], question: Question, table: Stored, writers: list[Method]) -> Found:
    """Costs measured here, of the writers that the table has."""
    models = _models(options)
    place = Setting(load_prompts(options["prompts"], 1, models)[0].ids, (), question.sampling)
    plan = Plan(question.repeats, device=str(models.target.device))
    costs = measure_costs(models, writers, question.timed, place, plan)
    return costs, table, {"costs": HERE, "acceptance": f"from the stored tables {table.name}"}


def held(table: Stored, writers: list[Method], k: int) -> list[Method]:
    """The writers that a stored table has at k; ValueError where it has none beside the dense one."""
    kept = [writer for writer in writers if (name_of(writer), k) in table.found]
    if len(kept) < 2 or all(name_of(writer) != "dense" for writer in kept):
        known = ", ".join(f"{name} at k = {size}" for name, size in sorted(table.found)) or "nothing"
        raise ValueError(f"the stored tables have {known}: choose among them, or use --tar replay")
    return kept
