"""`flashspec trace`: record a target's text once and replay drafts against it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from flashspec.cli.flags import COUNT, DRAFT, DTYPE, PROMPTS, TARGET, At, Value, busy, given, option, with_flags
from flashspec.decoding.method import Method, method_named
from flashspec.decoding.models import Models, folder_of, load
from flashspec.measure.prompts import load_prompts
from flashspec.measure.trace import Trace, check_target, check_words, record, replay_texts
from flashspec.models.writing import new_file
from flashspec.sampling import Sampling
from flashspec.theory import curve_by_position, replayed_all
from flashspec.theory.checks import check_smaller

PLACE = click.argument("file", type=At())


@click.group("trace")
def command() -> None:
    """Count tokens per check without the target: record its text once, then replay any draft, head and k against it."""


@command.command("record")
@PLACE
@TARGET
@PROMPTS
@option("--per-kind", type=COUNT, default=4, help="Prompts of each kind.")
@option("--new-tokens", type=COUNT, default=128, help="Tokens per prompt; stop tokens are ignored.")
@DTYPE
@with_flags(Sampling)
def record_one(file: Path, target: str, **options: Any) -> None:
    """Let the target continue every prompt and store what it wrote in FILE."""
    sampling = Sampling(**given(Sampling, options))
    busy("loading the target")
    with new_file(file, [folder_of(target, "target")]) as part:
        models = load(target, None, options["dtype"], weights="dense")
        prompts = load_prompts(options["prompts"], options["per_kind"], models)
        trace = record(models, tqdm(prompts, desc="trace", unit="prompt", delay=1), sampling, options["new_tokens"])
        trace.save(part)
    click.echo(f"{sum(len(text.tokens) for text in trace.told)} tokens behind {len(trace.told)} prompts in {file}")


@command.command("replay")
@PLACE
@DRAFT
@option("--target", help="The target's folder, to check that it wrote the trace.")
@option("--k", type=Value(tuple[int, ...]), default="1,2,3,4,5,6,8,10,12", metavar="INTEGER,...", help="Drafted tokens a check.")
@DTYPE
@with_flags(Method, skip=("draft", "k", "exits", "finalize", "interval"))
def replay_one(file: Path, draft: str, target: str | None, k: tuple[int, ...], **options: Any) -> None:
    """Print a draft's rounds, drafted tokens, accepted tokens and tokens per check on the recorded text, for each k."""
    trace = Trace.load(file)
    if target:
        check_target(trace, folder_of(target, "target"))
    if min(k, default=0) < 1:
        raise ValueError(f"k must be whole numbers of at least 1, got {k}")
    method = method_named(Method("model"), given(Method, options))
    busy("loading the draft")
    replayed = replay_texts(trace, draft_alone(trace, draft, options["dtype"]), method)
    texts = list(tqdm(replayed, total=len(trace.told), desc="replay", unit="text", delay=1))
    click.echo("k\trounds\tdrafted\taccepted\tTAR")
    for each in k:
        found = replayed_all(texts, each)
        click.echo(f"{each}\t{found.rounds:.6g}\t{found.drafted:.6g}\t{found.accepted:.6g}\t{found.tar:.4f}")
    curve = curve_by_position(texts, max(k))
    click.echo("acceptance by position: " + ", ".join(f"{rate:.3f}" for rate in curve), err=True)


def draft_alone(trace: Trace, name: str, dtype: str) -> Models:
    """The draft in its target's place too: a replay never runs the target."""
    models = load(folder_of(name, "draft"), None, dtype, weights="dense")
    check_words(trace, models.tokenizer)
    check_smaller(models.target.config.body_parameters, trace.parameters)
    return Models(models.target, models.target, models.tokenizer, {"draft": models.folders["target"]})
