"""`flashspec generate`: text as it becomes final, then what it cost."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import click

from flashspec.cli.flags import COUNT, given, with_flags
from flashspec.decoding.generate import Request, Stats, count, request, weak_exit
from flashspec.decoding.method import METHODS, Method, method_named
from flashspec.decoding.models import Models, folder_of, load
from flashspec.decoding.state import Event, Step
from flashspec.models.adapter import speaker
from flashspec.models.chat import chat_prompt, generation_defaults
from flashspec.sampling import Sampling
from flashspec.study.parameters import parse_value

COLOURS = {"accepted": "green", "corrected": "red", "bonus": "cyan", "written": None}


class Decoded(NamedTuple):
    """A finished decode: counts, and seconds spent in the decoder alone."""

    stats: Stats
    seconds: float


class Texts:
    """Ids to text piece by piece; a piece waits until its characters are whole."""

    def __init__(self, models: Models) -> None:
        self.models, self.ids, self.start, self.shown = models, list[int](), 0, 0

    def push(self, token: int) -> str:
        """The text that this token completes."""
        if self.models.tokenizer is None:
            return f"{token} "
        self.ids.append(token)
        known, now = (self.models.decode(self.ids[self.start : end]) for end in (self.shown, len(self.ids)))
        if now.endswith("\ufffd"):
            return ""
        self.start, self.shown = self.shown, len(self.ids)
        return now[len(known) :]


def kinds(step: Step, stages: int) -> list[str]:
    """What each token of a step is: accepted, corrected or bonus; written where nothing verifies."""
    verdict = next((e for e in step.events if stages > 1 and e.stage == stages - 1 and e.adds), None)
    if verdict is None:
        return ["written"] * len(step.tokens)
    last = "bonus" if verdict.kept == verdict.waiting else "corrected"
    return (["accepted"] * verdict.kept + [last])[: len(step.tokens)]


def stream(models: Models, ready: Request, show: bool) -> Decoded:
    """Print tokens as they become final; the clock runs only while the decoder does."""
    texts, events, emitted, seconds = Texts(models), list[Event](), 0, 0.0
    for step, spent in clocked(ready.steps()):
        seconds += spent
        events += step.events
        emitted += len(step.tokens)
        pairs = list(zip(step.tokens, kinds(step, len(ready.stages)), strict=True))
        for token, kind in pairs if speaker() else []:
            click.secho(texts.push(token), fg=COLOURS[kind] if show else None, nl=False, color=True if show else None)
        sys.stdout.flush()
    click.echo(nl=speaker())
    weak = weak_exit(ready.method, events)
    if weak and speaker():
        click.echo(f"warning: {weak}", err=True)
    return Decoded(count(events, emitted, len(ready.stages)), seconds)


def clocked(steps: Iterator[Step]) -> Iterator[tuple[Step, float]]:
    """Each step with the seconds it took."""
    while True:
        start = time.perf_counter()
        step = next(steps, None)
        if step is None:
            return
        yield step, time.perf_counter() - start


def summary(done: Decoded) -> str:
    """Speed, acceptance and forwards in one line."""
    stats = done.stats
    line = f"{stats.emitted} tokens in {done.seconds:.2f} s, {stats.emitted / max(done.seconds, 1e-9):.1f} tokens/s"
    if stats.drafted:
        line += f"; acceptance {stats.acceptance:.2f}, {stats.tar:.2f} tokens a verification"
    return line + f"; {stats.forwards} target forwards"


def legend() -> str:
    """The colours and what they mean."""
    return ", ".join(click.style(kind, fg=colour) for kind, colour in COLOURS.items() if colour)


def prompt_of(text: str | None, ids: str | None) -> str | list[int]:
    """The prompt as text or ids: the argument, standard input for "-", or --ids."""
    if (text is None) == (ids is None):
        raise click.UsageError("give a prompt, - for standard input, or --ids")
    if ids is not None:
        return list(parse_value("ids", tuple[int, ...], ids))
    return utf8("the prompt", sys.stdin.buffer.read() if text == "-" else os.fsencode(text or ""))


def utf8(name: str, text: bytes) -> str:
    """A text from its bytes; ValueError in words where they are not UTF-8."""
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is not UTF-8 text (byte {error.start}); convert it") from None


@click.command("generate", epilog="Colours of --show: accepted green, corrected red, bonus cyan.")
@click.argument("prompt", required=False)
@click.option("--ids", metavar="1,2,3", help="The prompt as token ids instead of text.")
@click.option("--method", default="flash", show_default=True, help="One of " + ", ".join(METHODS) + ".")
@click.option(
    "--target", default="reference", show_default=True, help="A shipped model, a checkpoint folder or a cached hub name."
)
@click.option(
    "--draft-model",
    default="reference",
    show_default=True,
    help="A shipped model or a checkpoint folder; several, by commas, for a cascade.",
)
@click.option("--chat", is_flag=True, help="Put the prompt through the target's chat template.")
@click.option("--system", help="With --chat: the system message.")
@click.option("--defaults", is_flag=True, help="Sample as the target's generation_config.json asks; flags you give win.")
@click.option("--max-new-tokens", type=COUNT, default=128, show_default=True, help="Tokens to write at most.")
@click.option("--show", is_flag=True, help="Colour accepted, corrected and bonus tokens.")
@click.option("--dtype", default="auto", show_default=True, help="auto, float32 or bfloat16.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
@click.option("--weights", default="auto", show_default=True, help="auto, int4 or dense, for 4-bit checkpoints.")
@with_flags(Method, skip=("draft",))
@with_flags(Sampling)
def command(prompt: str | None, ids: str | None, **options: Any) -> None:
    """Write text from PROMPT; end with tokens per second, acceptance and target forwards."""
    asked = prompt_of(prompt, ids)
    if (options["chat"] and ids is not None) or (options["system"] and not options["chat"]):
        raise click.UsageError("--chat goes with a prompt in words, and --system with --chat")
    if options["system"]:
        options["system"] = utf8("the system message", os.fsencode(options["system"]))
    sampling = Sampling(**(own_defaults(options) | given(Sampling, options)))
    changes = given(Method, options)
    method = method_named(options["method"], changes)
    if sys.stderr.isatty():
        click.secho("loading models ...", err=True, dim=True)
    models = _models(options, method.draft in ("model", "cascade"))
    limit = {"max_new_tokens": options["max_new_tokens"]}
    if options["chat"]:
        asked = models.encode(chat_prompt(models.folders["target"], str(asked), options["system"]), rendered=True)
    ready = request(models, asked, method, sampling, limit)
    if speaker() and not method.exact(sampling):
        click.echo("lossy: the text need not follow the target's own law under this method and rule", err=True)
    done = stream(models, ready, options["show"])
    if speaker():
        click.echo(
            summary(done) + (f"; {legend()}" if options["show"] else ""), err=True, color=True if options["show"] else None
        )


def own_defaults(options: dict[str, Any]) -> dict[str, Any]:
    """What --defaults takes from the target's checkpoint; what it asks for and cannot have is said on standard error."""
    if not options["defaults"]:
        return {}
    found = generation_defaults(folder_of(options["target"], "target"))
    if found.ignored:
        click.echo("not applied: " + ", ".join(f"{name} {value}" for name, value in found.ignored.items()), err=True)
    return found.sampling


def _models(options: dict[str, Any], drafts: bool) -> Models:
    return load(
        options["target"],
        options["draft_model"].split(",") if drafts else None,
        dtype=options["dtype"],
        device=options["device"],
        weights=options["weights"],
    )
