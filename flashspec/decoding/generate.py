"""Generate: prompt in, text and counts out, and what became of every token."""

from __future__ import annotations

import html
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from flashspec.decoding.cascade import Event, Limits, Step, decode, decode_together
from flashspec.decoding.method import Method, build, method_named
from flashspec.decoding.models import Models
from flashspec.decoding.stages import Stage
from flashspec.sampling import GREEDY, Sampling
from flashspec.typed import typed, whole_numbers

Prompt = str | list[int]
LEAST_AGREEMENT, LEAST_DECIDED = 0.3, 16
SHADES = {"accepted": "#cfe8d5", "corrected": "#ffd9b8", "bonus": "#cfe0f5", "rejected": "#e4e4e4", "written": "transparent"}
Said = list[tuple[str, str]]  # pieces of text, each with what became of it: a name of SHADES


@dataclass(frozen=True)
class Stats:
    """Counts of one decode, defined once.

    `rounds`: verifications by the last stage. `drafted`: tokens written by stage 0, including the unverified rest of a cut
    text. `judged`: tokens that the last stage checked; `accepted`: those it accepted. `emitted`: tokens returned to the caller.
    `forwards` of the last stage include finalising ones. In plain decoding every token is a round.
    """

    rounds: int
    drafted: int
    judged: int
    accepted: int
    emitted: int
    forwards: int

    @property
    def tar(self) -> float:
        """Tokens settled per verification, the last stage's own included (TAR in Decoding Speculative Decoding)."""
        return (self.accepted + self.rounds) / self.rounds if self.rounds else 0.0


def count(events: list[Event], emitted: int, stages: int) -> Stats:
    """Stats of a decode's events, for a method with this many stages."""
    last = [e for e in events if e.stage == stages - 1]
    rounds = sum(e.adds for e in last)
    if stages == 1:
        return Stats(rounds, 0, 0, 0, emitted, rounds)
    judged, accepted = sum(e.waiting for e in last), sum(e.kept for e in last)
    drafted = sum(e.adds for e in events if e.stage == 0)
    return Stats(rounds, drafted, judged, accepted, emitted, forwards=sum(e.rows > 0 for e in last))


class Detokenizer:
    """Ids to text piece by piece, in whole characters; without a tokenizer the ids themselves."""

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


def kinds(event: Event, last: int) -> list[str]:
    """The kind of each token that became final in an event: accepted, corrected, bonus or written."""
    if event.stage != last or not event.adds:
        return []
    if not last:
        return ["written"] * event.adds
    return ["accepted"] * event.kept + ["bonus" if event.kept == event.waiting else "corrected"]


def said_of(models: Models, events: list[Event], tokens: list[int]) -> list[Said]:
    """For each event the tokens that became final in it, and those that it rejected, each by itself."""
    last, lines = max((event.stage for event in events), default=0), list[Said]()
    pieces = map(Detokenizer(models).push, tokens)
    for event in events:
        found = [(piece, kind) for kind, piece in zip(kinds(event, last), pieces, strict=False)]
        rejected = event.asked[event.kept :] if len(found) > event.kept else ()
        alone = [(Detokenizer(models).push(token) or "\ufffd", "rejected") for token in rejected]
        lines.append([*found[: event.kept], *alone, *found[event.kept :]])
    return lines


def _shaded(piece: str, kind: str) -> str:
    ink = "" if kind == "written" else ";color:#000"
    return f'<span title="{kind}" style="background:{SHADES[kind]}{ink}">{html.escape(piece)}</span>'


@dataclass(frozen=True)
class Output:
    """What a decode gave: text and ids without the prompt, every event, their counts, the prompt, and `said_of` them.

    In a notebook it shows its text, accepted, corrected and bonus tokens in colours.
    """

    text: str
    tokens: list[int]
    events: list[Event]
    stats: Stats
    prompt: str = field(repr=False)
    said: list[Said] = field(repr=False)

    def _repr_html_(self) -> str:
        tokens = [each for line in self.said for each in line if each[1] != "rejected"]
        text = "".join(_shaded(piece, kind) for piece, kind in tokens)
        shown, prompt = {kind for _, kind in tokens} - {"written"}, html.escape(self.prompt)
        legend = " ".join(_shaded(kind, kind) for kind in SHADES if kind in shown)
        return f'<pre class="decoded" style="white-space:pre-wrap">{prompt}{text}</pre><p>{legend}</p>'


@dataclass(frozen=True)
class Request:
    """A prompt made ready: ids, stages and limits."""

    ids: list[int]
    stages: list[Stage]
    limits: Limits
    method: Method

    def steps(self) -> Iterator[Step]:
        """Decode; yields tokens as they become final."""
        return decode(self.stages, self.ids, self.limits)


@typed
def request(models: Models, prompt: Prompt, method: str | Method, sampling: Sampling, options: dict[str, Any]) -> Request:
    """Make a call ready, before the first forward; `options` are max_new_tokens, stop and fields of Method."""
    return requests(models, [prompt], method, sampling, options)[0]


@typed
def requests(
    models: Models, prompts: Sequence[Prompt], method: str | Method, sampling: Sampling, options: dict[str, Any]
) -> list[Request]:
    """Calls that may be decoded together, as `request` makes one ready: their caches have one size."""
    options = dict(options)
    new, stop = options.pop("max_new_tokens", 128), options.pop("stop", None)
    chosen = method_named(own_method(models) if method == "auto" else method, options)
    limits = Limits(new, models.stop if stop is None else whole_numbers("stop (token ids)", stop), chosen.finalize)
    encoded = (models.encode(one) if isinstance(one, str) else one for one in prompts)
    ids = [list(whole_numbers("prompt", one)) for one in encoded]
    context = min(models.context, max(map(len, ids)) + new)
    return [Request(one, build(chosen, models, sampling, context), limits, chosen) for one in ids]


def steps_together(ready: Sequence[Request]) -> Iterator[tuple[int, Step]]:
    """Decode what `requests` made ready; yields a request's number with tokens as they become final."""
    return decode_together([each.stages for each in ready], [each.ids for each in ready], ready[0].limits)


def own_method(models: Models) -> str:
    """What "auto" means: plain decoding without a draft, else its FlashHead, or its dense head without one."""
    if models.draft is None:
        return "baseline"
    if models.draft.vocabulary is None:  # rows are logits
        return "dense"
    try:
        models.head("draft", "flash")
    except FileNotFoundError:
        return "dense"
    return "flash"


def lacks_flash(models: Models) -> str:
    """What to say where "auto" drafts with the dense head; empty where it does not."""
    if own_method(models) != "dense":
        return ""
    built = models.model("draft").vocabulary is not None
    return "this draft has no FlashHead" + ("; `flashspec heads build MODEL` builds one" if built else ", and none can be built")


def agreement(events: list[Event], stage: int) -> tuple[int, int]:
    """Tokens that a stage accepted, and tokens it decided on: these and the first rejected one of every action."""
    judged = [e for e in events if e.stage == stage and e.adds]
    kept = sum(e.kept for e in judged)
    return kept, kept + sum(e.kept < e.waiting for e in judged)


def weak_exit(method: Method, events: list[Event]) -> str | None:
    """A warning about an exit that the stage above almost never agreed with; None if there is none."""
    last = max((e.stage for e in events), default=0)
    for stage, layer in enumerate(method.exits, start=last - len(method.exits)):
        kept, decided = agreement(events, stage + 1)
        if decided >= LEAST_DECIDED and kept < LEAST_AGREEMENT * decided:
            return (
                f"exit {layer} agreed with the layers above it on {kept} of {decided} tokens ({kept / decided:.0%}): this model "
                "has no usable exit there; train one with `flashspec train exits`, or draft with a second model"
            )
    return None


def generate(
    models: Models, prompt: Prompt, method: str | Method = "auto", sampling: Sampling = GREEDY, **options: Any
) -> Output:
    """Decode a prompt (text or token ids) and return text, tokens, events and counts.

    The method "auto" is "baseline" without a draft; with one it is "flash", or "dense" where no FlashHead has been built.
    `options`: max_new_tokens (128), stop (ids; the target's own by default) and the fields of Method. Raises ValueError for
    an unknown method or option and an impossible prompt; warns where an exit almost never agrees.
    """
    return generate_together(models, [prompt], method, sampling, **options)[0]


def generate_together(
    models: Models, prompts: Sequence[Prompt], method: str | Method = "auto", sampling: Sampling = GREEDY, **options: Any
) -> list[Output]:
    """What `generate` gives for each of several prompts, decoded in one batch; ValueError for no prompts too."""
    if isinstance(prompts, str) or not prompts:
        raise ValueError("prompts are a list of one or more prompts; for a single one call generate")
    ready = requests(models, prompts, method, sampling, options)
    tokens, events = [list[int]() for _ in ready], [list[Event]() for _ in ready]
    for number, step in steps_together(ready):
        tokens[number] += step.tokens
        events[number] += step.events
    for happened in events:
        if weak := weak_exit(ready[0].method, happened):
            warnings.warn(weak, stacklevel=3)
    return [_output(models, *each) for each in zip(ready, tokens, events, strict=True)]


def _output(models: Models, ready: Request, tokens: list[int], events: list[Event]) -> Output:
    stats, said = count(events, len(tokens), len(ready.stages)), said_of(models, events, tokens)
    return Output(models.decode(tokens), tokens, events, stats, models.decode(ready.ids), said)
