"""Tokens per check without the target: drafts replayed against its recorded texts.

Every lossless method prints the target's own text, so one recording serves every draft, head and k (Yan et al. 2024). Sampled
text is replayed exactly where stages share their noise (rule "coupling"), else in expectation.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import torch
from torch import Tensor

from flashspec.decoding.generate import generate
from flashspec.decoding.method import Method, build
from flashspec.decoding.models import Models
from flashspec.decoding.stages import Stage
from flashspec.heads.candidates import ContextHead
from flashspec.measure.prompts import Prompt
from flashspec.models.files import Id
from flashspec.models.folder import read_as
from flashspec.models.writing import write_json
from flashspec.provenance import model_digests, short_hash
from flashspec.sampling import Sampling, Scores, warp

NO_TRACE = "it is no trace: record one with `flashspec trace record`"


class Told(msgspec.Struct, frozen=True):
    """A prompt, what the target wrote, and the probability of each written token (1 if nothing was drawn)."""

    kind: str
    prompt: tuple[Id, ...]
    tokens: tuple[Id, ...]
    chances: tuple[Annotated[float, msgspec.Meta(ge=0, le=1.0001)], ...]


@dataclass(frozen=True)
class Trace:
    """Recorded texts of one target: its digest, its body parameters, the sampling, and the words of the ids."""

    target: str
    parameters: int
    sampling: Sampling
    told: tuple[Told, ...]
    words: dict[int, str]
    format: Literal[1] = 1

    def save(self, path: Path) -> None:
        """Write one JSON file; an interrupted write leaves no file of that name."""
        write_json(msgspec.to_builtins(self, str_keys=True), path)

    @classmethod
    def load(cls, path: Path) -> Trace:
        """Read what `save` wrote; FileNotFoundError or ValueError for any other file."""
        if not path.is_file():
            raise FileNotFoundError(f"no trace at {path}; record one with `flashspec trace record`")
        trace = read_as(path, Trace, NO_TRACE)
        if any(not text.prompt or not len(text.tokens) == len(text.chances) > 0 for text in trace.told) or not trace.told:
            raise ValueError(f"{path.name} has a text without prompt, tokens or a chance for each; {NO_TRACE}")
        return trace


def target_digest(folder: Path) -> str:
    """Identifies the target of a trace: a hash over the digests of weights, config.json and tokenizer.json."""
    return short_hash(model_digests(folder))


def record(models: Models, prompts: Iterable[Prompt], sampling: Sampling, new_tokens: int) -> Trace:
    """Let the target write `new_tokens` after every prompt, as `tell` does."""
    told = tuple(tell(models, prompt, sampling, new_tokens) for prompt in prompts)
    folder, tokenizer = models.folders.get("target"), models.tokenizer
    ids = sorted({number for text in told for number in (*text.prompt, *text.tokens)}) if tokenizer else []
    words = {number: tokenizer.id_to_token(number) or "" for number in ids}
    return Trace(target_digest(folder) if folder else "", models.target.config.body_parameters, sampling, told, words)


def tell(models: Models, prompt: Prompt, sampling: Sampling, new_tokens: int) -> Told:
    """Let the target write after a prompt, ignoring stop tokens.

    Raises ValueError under typical acceptance, whose text depends on the draft.
    """
    if sampling.rule == "typical" and sampling.temperature:
        raise ValueError("under typical acceptance the text depends on the draft; record with rule coupling or speculative")
    tokens = generate(models, list(prompt.ids), Method(), sampling, max_new_tokens=new_tokens, stop=()).tokens
    return told_of(models, prompt, tokens, sampling)


def told_of(models: Models, prompt: Prompt, tokens: Sequence[int], sampling: Sampling) -> Told:
    """What the target wrote after a prompt, with the chances of these tokens."""
    told = Told(prompt.kind, prompt.ids, tuple(tokens), (1.0,) * len(tokens))
    if not _drawn_apart(sampling):
        return told
    stage = build(Method(), models, sampling, len(prompt.ids) + len(tokens))[0]
    chances = _probabilities(stage, stage.head(_rows(stage, told)), told)
    return msgspec.structs.replace(told, chances=tuple(chances.tolist()))


def _drawn_apart(sampling: Sampling) -> bool:
    """Whether draft and target draw with different random numbers."""
    return sampling.rule != "coupling" and sampling.temperature > 0


def replay_texts(trace: Trace, models: Models, method: Method) -> Iterator[list[float]]:
    """The chances of `replay_text` for each text."""
    return (replay_text(told, models, method, trace.sampling) for told in trace.told)


def replay_text(told: Told, models: Models, method: Method, sampling: Sampling) -> list[float]:
    """The chance that the draft proposes each token of a text after the true text before it: 1 or 0, or min(1, q / p).

    `models` needs the draft and, as its target, any model of the same vocabulary.
    """
    return replay_heads(told, models, [method], sampling)[0]


def replay_heads(told: Told, models: Models, methods: Sequence[Method], sampling: Sampling) -> list[list[float]]:
    """The chances of `replay_text` for methods that differ in the draft's head; the draft reads once."""
    config = models.model("draft").config
    context, highest = len(told.prompt) + len(told.tokens), max(*told.prompt, *told.tokens)
    if highest >= config.vocab_size:
        raise ValueError(f"a recorded text has the id {highest} and the draft {config.vocab_size} ids; use one tokenizer")
    if context > config.context:
        held = f"the draft's context holds {config.context}"
        raise ValueError(f"a recorded text has {context} tokens and {held}; record shorter ones")
    stages = [build(method, models, sampling, context)[0] for method in methods]
    for stage, method in zip(stages, methods, strict=True):
        if isinstance(stage.head, ContextHead):
            raise ValueError(f"head {method.head!r} learns from verifications, which a replay has none of; decode live instead")
    with torch.inference_mode():
        rows = _rows(stages[0], told)
        return [_chances(stage, rows, told) for stage in stages]


def _chances(stage: Stage, rows: Tensor, told: Told) -> list[float]:
    """The chance of each token of a text in the stage's draws from its head's scores of rows [n, hidden]."""
    scores = stage.head(rows)
    if _drawn_apart(stage.rule.sampling):
        proposed = _probabilities(stage, scores, told)
        return (proposed / proposed.new_tensor(told.chances)).clamp(max=1.0).tolist()
    own = [stage.rule.draw(scores.row(i), len(told.prompt) + i, 0).token for i in range(len(told.tokens))]
    return [float(a == b) for a, b in zip(torch.cat(own).tolist(), told.tokens, strict=True)]


def _probabilities(stage: Stage, scores: Scores, told: Told) -> Tensor:
    """Warped probability of each token of a text, of raw scores."""
    warped = warp(scores, stage.rule.sampling)
    tokens = torch.tensor(told.tokens, device=warped.logits.device)
    return warped.dense(stage.head.vocab_size).gather(1, tokens[:, None])[:, 0]


@torch.inference_mode()
def _rows(stage: Stage, told: Told) -> Tensor:
    """The rows that predict each token of a text."""
    reader, start = stage.reader, len(told.prompt)
    ids = torch.tensor([*told.prompt, *told.tokens], device=reader.rows.device)
    reader.rewind(0)
    reader.read(ids[:-1])
    return reader.rows[start - 1 : len(ids) - 1]


def check_target(trace: Trace, folder: Path) -> None:
    """Refuse a trace of another target."""
    found = target_digest(folder)
    if trace.target != found:
        raise ValueError(
            f"this trace was recorded from another target (digest {trace.target or 'none'}, {folder.name} has {found}); "
            "record it anew with `flashspec trace record`"
        )


def check_words(trace: Trace, tokenizer: Any) -> None:
    """Refuse a draft whose tokenizer gives an id of the trace to another word."""
    if tokenizer is None or not trace.words:
        return
    wrong = [number for number, word in trace.words.items() if (tokenizer.id_to_token(number) or "") != word]
    if wrong:
        named = ", ".join(f"{n} ({trace.words[n]!r}, not {tokenizer.id_to_token(n)!r})" for n in wrong[:5])
        raise ValueError(
            f"draft and target have different vocabularies: {len(wrong)} of {len(trace.words)} recorded ids differ, "
            f"such as {named}; use models of one tokenizer"
        )
