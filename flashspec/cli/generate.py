"""`flashspec generate` and `trace`: text as it becomes final; drafts replayed against recorded text."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import click
from tqdm import tqdm

from flashspec.cli.flags import COUNT, DRAFT, DTYPE, PRECISION, PROMPTS, TARGET, At, Value, busy, given, option, with_flags
from flashspec.decoding.cascade import Event
from flashspec.decoding.generate import Detokenizer, Request, Stats, count, kinds, lacks_flash, request, weak_exit
from flashspec.decoding.method import METHODS, Method, method_named
from flashspec.decoding.models import Models, check_smaller, folder_of, load, own_draft, rounding
from flashspec.measure.prompts import load_prompts
from flashspec.measure.trace import Trace, check_target, check_words, record, replay_texts
from flashspec.models.adapter import speaker
from flashspec.models.chat import chat_prompt, generation_defaults
from flashspec.models.packed import rounded
from flashspec.models.writing import new_file
from flashspec.provenance import usable_cores
from flashspec.sampling import Sampling
from flashspec.theory import curve_by_position, replayed

COLOURS = {"accepted": "green", "corrected": "red", "bonus": "cyan", "written": None}
PLACE = click.argument("file", type=At())


class Done(NamedTuple):
    """What a decode wrote, its counts, and the seconds that the decoder alone took."""

    tokens: list[int]
    stats: Stats
    seconds: float

    @property
    def rate(self) -> float:
        """Tokens a second."""
        return len(self.tokens) / max(self.seconds, 1e-9)


def stream(models: Models, ready: Request, show: bool, heard: bool = True) -> Done:
    """Decode; print tokens as they become final, if they are to be heard."""
    texts, events, tokens, seconds, steps = Detokenizer(models), list[Event](), list[int](), 0.0, ready.steps()
    while True:
        start = time.perf_counter()
        step = next(steps, None)
        seconds += time.perf_counter() - start
        if step is None:
            break
        events += step.events
        tokens += step.tokens
        became = [kind for event in step.events for kind in kinds(event, len(ready.stages) - 1)]
        for token, kind in zip(step.tokens if heard else (), became, strict=False):
            click.secho(texts.push(token), fg=COLOURS[kind] if show else None, nl=False, color=True if show else None)
        sys.stdout.flush()
    click.echo(nl=heard)
    if heard and (weak := weak_exit(ready.method, events)):
        click.echo(f"warning: {weak}", err=True)
    return Done(tokens, count(events, len(tokens), len(ready.stages)), seconds)


def summary(done: Done, show: bool) -> str:
    """Speed, accepted share and forwards in one line, and what the colours mean where they are shown."""
    stats = done.stats
    line = f"{stats.emitted} tokens in {done.seconds:.2f} s, {done.rate:.1f} tokens/s"
    if stats.drafted:
        line += f"; share accepted {stats.accepted / stats.drafted:.2f}, {stats.tar:.2f} tokens per check"
    legend = ", ".join(click.style(kind, fg=colour) for kind, colour in COLOURS.items() if colour)
    return line + f"; {stats.forwards} target forwards" + (f"; {legend}" if show else "")


def comparison(done: Done, plain: Done, load: float) -> Iterator[str]:
    """Both speeds, their ratio, whether the texts are equal, and the machine's load before the run."""
    from flashspec.cli.plan import columns, machine
    from flashspec.measure.certificate import first_difference

    runs = {"this decoding": done, "plain decoding": plain}
    rows = [[name, str(len(run.tokens)), f"{run.seconds:.2f}", f"{run.rate:.1f}"] for name, run in runs.items()]
    yield from columns([["", "tokens", "seconds", "tokens/s"], *rows])
    ratio, at = done.rate / plain.rate, first_difference(done.tokens, plain.tokens)
    told = f"{ratio:.2f}x faster" if ratio >= 1 else f"{1 / ratio:.2f}x slower"
    texts = "the texts are equal" if at is None else f"the texts differ from token {at + 1} on"
    yield f"{told} than plain decoding, in one run of each on this prompt; {texts}"
    yield machine(load, usable_cores())


@click.command("generate", epilog="Colours of --show: accepted green, corrected red, bonus cyan.")
@click.argument("prompt", required=False)
@option("--ids", type=Value(tuple[int, ...]), metavar="1,2,3", help="The prompt as token ids instead of text.")
@option(
    "--method",
    type=click.Choice(("auto", *METHODS)),
    default="auto",
    help="auto: flash with a draft (dense without a FlashHead), else baseline.",
)
@TARGET
@option(
    "--draft", default="auto", help="auto (the target's own), or named like --target; several for a cascade, smallest first: A,B."
)
@option("--chat", is_flag=True, help="Wrap the prompt in the target's chat template.")
@option("--system", help="With --chat: the system message.")
@option("--defaults", is_flag=True, help="Sample as the target's generation_config.json says, but for your flags.")
@option("--max-new-tokens", type=COUNT, default=128, help="Most tokens to write.")
@option("--show", is_flag=True, help="Colour accepted, corrected and bonus tokens.")
@option("--compare", is_flag=True, help="Decode the prompt plainly too, and end with both speeds.")
@PRECISION
@with_flags(Method, skip=("draft",))
@with_flags(Sampling)
def generate(prompt: str | None, ids: tuple[int, ...] | None, show: bool, **options: Any) -> None:
    """Write text from PROMPT (- for standard input); end with speed, accepted share and target forwards."""
    if (prompt is None) == (ids is None):
        raise click.UsageError("give a prompt, - for standard input, or --ids")
    if (options["chat"] and ids is not None) or (options["system"] and not options["chat"]):
        raise click.UsageError("--chat goes with a prompt in words, and --system with --chat")
    load_before = os.getloadavg()[0]
    text = "" if prompt is None else (sys.stdin.buffer.read() if prompt == "-" else os.fsencode(prompt)).decode()
    system = os.fsencode(options["system"]).decode() if options["system"] else None
    sampling = Sampling(**(own_defaults(options) | given(Sampling, options)))
    method, drafts = chosen(options)
    busy("loading models")
    models = load(options["target"], drafts, options["dtype"], options["device"], options["weights"])
    if options["method"] == "auto" and options["head"] is None and drafts and (why := lacks_flash(models)):
        method = replace(method, head="dense")
        click.echo(f"dense draft head: {why}", err=True)
    asked: str | list[int] = text if ids is None else list(ids)
    if options["chat"]:
        asked = models.encode(chat_prompt(models.folders["target"], text, system), rendered=True)
    length = {"max_new_tokens": options["max_new_tokens"]}
    ready = request(models, asked, method, sampling, length)
    if speaker() and options["method"] == "auto" and drafts is None:
        click.echo("plain decoding: this target has no draft of its own; give --draft, or --method lookup", err=True)
    if speaker() and not method.exact(sampling):
        click.echo("lossy: with this method and rule the text may not follow the target's distribution", err=True)
    done = stream(models, ready, show, speaker())
    told = [summary(done, show)]
    if options["compare"]:
        busy("decoding plainly")
        plain = request(models, ready.ids, "baseline", sampling, length)
        told += comparison(done, stream(models, plain, False, heard=False), load_before)
    if speaker():
        click.echo("\n".join(told), err=True, color=True if show else None)


def chosen(options: dict[str, Any]) -> tuple[Method, list[str] | None]:
    """The method, and the drafts that it needs."""
    named = own_draft(options["target"]) if options["draft"] == "auto" else options["draft"]
    plain = "flash" if named else "baseline"
    fields = given(Method, {**options, "draft": None})
    method = method_named(plain if options["method"] == "auto" else options["method"], fields)
    return method, named.split(",") if named and method.draft in ("model", "cascade") else None


def own_defaults(options: dict[str, Any]) -> dict[str, Any]:
    """What --defaults takes from the target's checkpoint; the rest is named on standard error."""
    if not options["defaults"]:
        return {}
    sampling, ignored = generation_defaults(folder_of(options["target"], "target"))
    if ignored:
        click.echo("not applied: " + ", ".join(f"{name} {value}" for name, value in ignored.items()), err=True)
    return sampling


@click.group("trace")
def trace() -> None:
    """Count tokens per check without the target: record its text once, then replay any draft against it."""


@trace.command("record")
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
        text = record(models, tqdm(prompts, desc="trace", unit="prompt", delay=1), sampling, options["new_tokens"])
        text.save(part)
    click.echo(f"{sum(len(each.tokens) for each in text.told)} tokens after {len(text.told)} prompts in {file}")


@trace.command("replay")
@PLACE
@DRAFT
@option("--target", help="The target's folder, to check that it wrote the trace.")
@option("--k", type=Value(tuple[int, ...]), default="1,2,3,4,5,6,8,10,12", metavar="INTEGER,...", help="Drafted tokens a check.")
@DTYPE
@with_flags(Method, skip=("draft", "k", "exits", "finalize", "interval", "draft_doubt", "verify_doubt", "middle"))
def replay_one(file: Path, draft: str, target: str | None, k: tuple[int, ...], **options: Any) -> None:
    """Print rounds, drafted tokens, accepted tokens and tokens per check on the recorded text, for each k."""
    text = Trace.load(file)
    if target:
        check_target(text, folder_of(target, "target"))
    if min(k, default=0) < 1:
        raise ValueError(f"k must be whole numbers of at least 1, got {k}")
    method = method_named(Method("model"), given(Method, options))
    busy("loading the draft")
    alone = load(folder_of(draft, "draft"), None, options["dtype"], weights="dense")
    check_words(text, alone.tokenizer)
    check_smaller(alone.target.config.body_parameters, text.parameters)
    model = rounded(alone.target, form) if (form := rounding(draft)[1]) else alone.target
    own = Models(model, model, alone.tokenizer, {"draft": alone.folders["target"]})
    texts = list(tqdm(replay_texts(text, own, method), total=len(text.told), desc="replay", unit="text", delay=1))
    click.echo("k\trounds\tdrafted\taccepted\ttokens/check")
    for each in k:
        found = replayed(texts, each)
        click.echo(f"{each}\t{found.rounds:.6g}\t{found.drafted:.6g}\t{found.accepted:.6g}\t{found.tar:.4f}")
    curve = curve_by_position(texts, max(k))
    click.echo("acceptance by position: " + ", ".join(f"{rate:.3f}" for rate in curve), err=True)
