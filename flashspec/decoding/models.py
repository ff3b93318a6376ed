"""The models a decode needs: a target, perhaps a draft, one tokenizer, and the FlashHeads built for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from flashspec.heads.base import DenseHead, Head, LogitRows, Norm
from flashspec.heads.registry import VARIANTS, Origin, head_named
from flashspec.models.adapter import Adapter, AdapterReader, processes
from flashspec.models.config import ModelConfig, Unsupported
from flashspec.models.exits import Exit, ExitLayer, exits_file, load_exits
from flashspec.models.folder import GGUF, PAIRS, located, published
from flashspec.models.packed import ROUNDED, rounded
from flashspec.models.reader import Reader, SpanReader
from flashspec.models.tokenizer import check_tokenizers, cut_padding, tokenizer_of
from flashspec.models.transformer import Transformer
from flashspec.once import Once
from flashspec.typed import typed

SHIPPED = Path(__file__).resolve().parent.parent / "data"
EXITS = SHIPPED / "exits"  # of published models, by the names of their files
REFERENCE = {"target": {"reference": "target"}, "draft": {"reference": "narrow", "shallow": "shallow", "designed": "designed"}}


def check_smaller(draft: int, target: int) -> None:
    """Refuse a draft whose layers hold more parameters than its target's."""
    if draft > target:
        raise ValueError(
            f"the draft is bigger than its target ({draft:,} and {target:,} body parameters): swap them, or shrink it"
        )


def check_pair(draft: ModelConfig, target: ModelConfig) -> None:
    """Refuse a draft that is larger than its target or has another vocabulary."""
    if isinstance(draft, ModelConfig) and isinstance(target, ModelConfig):
        check_smaller(draft.body_parameters, target.body_parameters)
    if draft.vocab_size != target.vocab_size:
        raise ValueError(
            f"draft and target have different vocabularies ({draft.vocab_size} and {target.vocab_size} ids); "
            "use two models that share one tokenizer"
        )


@dataclass
class Models:
    """Target, draft and tokenizer that belong together; immutable.

    `between` are the verifiers of a cascade below the target, smallest first; `exits` maps layers of the target to exits; an
    `Adapter` is a model that only transformers computes. `cut` names models whose padding rows were cut, `heads` holds the
    draft heads made so far, by model ("target" or "draft") and name.
    """

    target: Transformer
    draft: Transformer | None = None
    tokenizer: Any = None
    folders: dict[str, Path] = field(default_factory=dict)
    between: tuple[Transformer, ...] = ()
    exits: dict[int, Exit] = field(default_factory=dict, repr=False)
    cut: tuple[str, ...] = ()
    heads: Once[tuple[str, str], Head] = field(default_factory=Once, repr=False)

    def __post_init__(self) -> None:
        for draft in self.drafts:
            check_pair(draft.config, self.target.config)
            if draft.device != self.target.device:
                held = f"the draft is on {draft.device} and its target on {self.target.device}"
                raise ValueError(f"{held}, since GGUF files are read on the CPU; give device='cpu'")

    @property
    def drafts(self) -> tuple[Transformer, ...]:
        """All models but the target, smallest first."""
        return (() if self.draft is None else (self.draft,)) + self.between

    @property
    def context(self) -> int:
        """Tokens that fit every model."""
        return min(model.config.context for model in (self.target, *self.drafts))

    def exit_norm(self, layer: int) -> Norm:
        """What the target's rows at a layer pass through before the head: an adapter, or the final norm."""
        found = self.exits.get(layer, self.target.norm)
        return found.norm if isinstance(found, ExitLayer) else found

    def model(self, which: str) -> Transformer:
        """The model named "target" or "draft"."""
        found = self.draft if which == "draft" else self.target
        if found is None:
            raise ValueError("this method drafts with a second model and none is loaded; give draft=... to fs.load")
        return found

    def head(self, which: str, name: str) -> Head:
        """A draft head by name, made once; FlashHeads share one clustering. ValueError as head_named."""
        if name in VARIANTS:
            return self.heads.made((which, name), lambda: cast(Any, self.head(which, "flash")).with_plan(**VARIANTS[name]))
        return self.heads.made((which, name), lambda: head_named(name, self.origin(which, name)))

    def origin(self, which: str, name: str) -> Origin:
        """What a head is made from, without stored heads where rows were cut; ValueError if rows are logits."""
        model = self.model(which)
        if model.vocabulary is None:
            raise ValueError(f"{model.config.family} gives logits and no vocabulary weight; head {name!r} needs one: use 'dense'")
        return Origin(model.vocabulary, model.norm, None if which in self.cut else self.folders.get(which))

    def encode(self, text: str, rendered: bool = False) -> list[int]:
        """Token ids of a text, with a beginning-of-text id if the checkpoint's tokenizer adds one.

        A `rendered` chat template contains its special tokens. ValueError where no tokenizer was loaded.
        """
        if self.tokenizer is None:
            raise ValueError(
                "these models were loaded without a tokenizer (no tokenizer.json beside the target's weights); give the prompt "
                "as token ids, or copy the file from the checkpoint's source"
            )
        return self.tokenizer.encode(text, add_special_tokens=not rendered).ids

    def decode(self, ids: list[int]) -> str:
        """Text of token ids, empty where no tokenizer was loaded."""
        return self.tokenizer.decode(ids) if self.tokenizer else ""

    @property
    def stop(self) -> tuple[int, ...]:
        """The target's end-of-text ids."""
        return self.target.config.eos


def folder_of(name: str | Path, role: str) -> Path:
    """The folder or GGUF file of a shipped or published model's name, a path, or a cached hub name."""
    name = rounding(name)[0] if role == "draft" else name
    if str(name) in PAIRS:
        return published(str(name), role)
    shipped = {known: SHIPPED / folder for known, folder in REFERENCE[role].items()} | (taught() if role == "draft" else {})
    try:
        return located(shipped.get(str(name), name))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}; shipped models: {', '.join(shipped)}; published: {', '.join(PAIRS)}") from None


def taught() -> dict[str, Path]:
    """Shipped drafts that borrow from published models, by name."""
    return {path.name: path for path in sorted((SHIPPED / "drafts").glob("*"))}


def own_draft(target: str | Path) -> str | None:
    """The draft that belongs to a target by name; None for any other model."""
    return str(target) if str(target) in REFERENCE["target"] or "draft" in PAIRS.get(str(target), {}) else None


@typed
def load(
    target: str | Path = "reference",
    draft: str | Path | Sequence[str | Path] | None = "auto",
    dtype: str = "auto",
    device: str = "auto",
    weights: str = "auto",
) -> Models:
    """Load a target and a draft (None for none): shipped or published names, folders, GGUF files or cached hub names.

    The draft "auto" is that of the target "reference" or "qwen", else none. Several drafts, smallest first, are the lower
    models of a cascade. "NAME:int8" and "NAME:int4" round a draft's layers, on CPU. Under torchrun the target is split over
    the processes. `dtype` is "auto", "float32" or "bfloat16"; `weights` is "int4", "dense" or "auto". Models of one tokenizer
    are cut to the smallest vocabulary. Raises FileNotFoundError for a missing file, ValueError for wrong digests,
    architectures or vocabularies, and for a draft that is bigger than its target.
    """
    draft = own_draft(target) if draft == "auto" else draft
    names = [] if draft is None else [draft] if isinstance(draft, (str, Path)) else draft
    drafts = {f"between-{i}" if i else "draft": name for i, name in enumerate(names)}
    folders = {"target": folder_of(target, "target")} | {role: folder_of(name, "draft") for role, name in drafts.items()}
    for role in drafts:
        check_tokenizers(folders["target"], folders[role])
    if processes() > 1:  # of torchrun, which all make the same calls
        made = {"target": cast(Transformer, Adapter.load(folders["target"], dtype, device, True))}
    else:
        made = {"target": opened(folders["target"], dtype, device, weights)}
    made |= {role: opened(folders[role], dtype, device, form=rounding(name)[1]) for role, name in drafts.items()}
    cut, source = cut_padding(made, folders), folders["target"]
    file = EXITS / f"{source.stem}.safetensors" if str(target) in PAIRS else exits_file(source)
    exits = load_exits(file, made["target"]) if file.exists() else {}
    between = tuple(model for role, model in made.items() if role.startswith("between"))
    return Models(made["target"], made.get("draft"), tokenizer_of(source), folders, between=between, exits=exits, cut=cut)


def opened(folder: Path, dtype: str, device: str, weights: str = "auto", form: str = "") -> Transformer:
    """The model of a folder, rounded to `form` unless that is ""; an `Adapter` if only transformers computes it."""
    try:
        model = Transformer.load(folder, dtype, device, weights)
    except Unsupported as ours:
        if folder.suffix == GGUF:  # which transformers does not read for us
            raise
        if form:
            raise ValueError(f"{ours}; only layers of our own architectures are rounded: leave :{form} away") from None
        if weights != "auto":
            raise ValueError(f"{ours}; with weights='auto' transformers may load it") from None
        try:
            model = cast(Transformer, Adapter.load(folder, dtype, device))
        except (ValueError, ModuleNotFoundError) as theirs:
            raise type(theirs)(f"{ours}; and {theirs}") from None
    return rounded(model, form) if form else model


def rounding(name: str | Path) -> tuple[str | Path, str]:
    """Split a draft's name at the colon: the name, and "int8", "int4", or "" where there is no colon."""
    base, _, form = str(name).rpartition(":")
    return (base, form) if base and form in ROUNDED else (name, "")


def dense_head(norm: Norm | None, model: Transformer) -> Head:
    """The head that scores the whole vocabulary on a model's rows."""
    return LogitRows(model.config.vocab_size) if model.vocabulary is None else DenseHead(norm, model.vocabulary)


def spans(
    model: Transformer, stops: Sequence[int], context: int | None = None, exits: Mapping[int, Exit] | None = None
) -> list[Reader]:
    """Readers of one model up to each of `stops`, one on top of another, with the layers of exits."""
    if isinstance(model, Adapter):
        if len(stops) > 1:
            raise ValueError(f"{model.config.family} is read whole by transformers; exits need one of our own architectures")
        return [AdapterReader(model, context)]
    chain: list[Any] = []
    for stop in stops:
        found = (exits or {}).get(stop)
        last = found.layer if isinstance(found, ExitLayer) else None
        chain.append(SpanReader(model, stop, chain[-1] if chain else None, context, last))
    return chain
