"""The models a decode needs: a target, perhaps a draft, one tokenizer, and the FlashHeads built for them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flashspec.heads.base import Norm
from flashspec.heads.flash import FlashHead
from flashspec.model.exits import EXITS_FILE, ExitAdapter, load_exits
from flashspec.model.reader import SpanReader
from flashspec.model.transformer import Transformer

SHIPPED = Path(__file__).resolve().parent.parent / "models"
REFERENCE = {"target": {"reference": "target"}, "draft": {"reference": "draft", "shallow": "shallow"}}
FLASH_FILE = "flash_head.safetensors"


@dataclass
class Models:
    """Target, draft and tokenizer that belong together; readers and heads are made from them, they are never changed.

    `between` holds models that verify below the target in a cascade, from the smallest; `exits` the adapters of the
    target's exits by layer, where its checkpoint brings some.
    """

    target: Transformer
    draft: Transformer | None = None
    tokenizer: Any = None
    folders: dict[str, Path] = field(default_factory=dict)
    _flash: dict[str, FlashHead] = field(default_factory=dict, repr=False)
    between: tuple[Transformer, ...] = ()
    exits: dict[int, ExitAdapter] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        for draft in self.drafts:
            if draft.config.vocab_size != self.target.config.vocab_size:
                raise ValueError(
                    f"draft and target have different vocabularies ({draft.config.vocab_size} and "
                    f"{self.target.config.vocab_size} ids); use two models that share one tokenizer"
                )

    @property
    def drafts(self) -> tuple[Transformer, ...]:
        """All models but the target, from the smallest."""
        return (() if self.draft is None else (self.draft,)) + self.between

    @property
    def context(self) -> int:
        """Tokens that fit every model."""
        return min(model.config.context for model in (self.target, *self.drafts))

    def exit_norm(self, layer: int) -> Norm:
        """What stands between the target's rows at a layer and its vocabulary head: an adapter, or the final norm."""
        return self.exits.get(layer, self.target.norm)

    def model(self, which: str) -> Transformer:
        """The model named "target" or "draft"."""
        if which == "draft" and self.draft is None:
            raise ValueError("this method drafts with a second model and none is loaded; give draft=... to fs.load")
        return self.draft if which == "draft" and self.draft is not None else self.target

    def flash_head(self, which: str) -> FlashHead:
        """The FlashHead of one model: read from its folder where it ships one, built once otherwise."""
        if which not in self._flash:
            self._flash[which] = self._make_flash(which)
        return self._flash[which]

    def _make_flash(self, which: str) -> FlashHead:
        model, folder = self.model(which), self.folders.get(which)
        weight = model.head_weight.detach()
        if folder and (folder / FLASH_FILE).exists():
            return FlashHead.load(folder / FLASH_FILE, weight, model.norm)
        return FlashHead.build(weight, model.norm)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text; ValueError where no tokenizer was loaded."""
        if self.tokenizer is None:
            raise ValueError("these models were loaded without a tokenizer; give the prompt as token ids")
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: list[int]) -> str:
        """Text of token ids, empty where no tokenizer was loaded."""
        return self.tokenizer.decode(ids) if self.tokenizer else ""

    @property
    def stop(self) -> tuple[int, ...]:
        """The target's end-of-text ids."""
        return self.target.config.eos


def folder_of(name: str | Path, role: str) -> Path:
    """The folder of a shipped model ("reference", "shallow") or of a path the user gave."""
    shipped = REFERENCE[role].get(str(name))
    folder = SHIPPED / shipped if shipped else Path(name)
    if not (folder / "config.json").exists():
        known = ", ".join(REFERENCE[role])
        raise FileNotFoundError(f"no model at {str(name)!r} (no config.json); give a checkpoint folder, or one of: {known}")
    return folder


def _tokenizer(folder: Path) -> Any:
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    return Tokenizer.from_file(str(path)) if path.exists() else None


def _vocabulary(folder: Path) -> dict[str, int]:
    path = folder / "tokenizer.json"
    return json.loads(path.read_text())["model"]["vocab"] if path.exists() else {}


def check_tokenizers(target: Path, draft: Path) -> None:
    """Refuse two folders whose tokenizers give one id to different tokens."""
    mine, theirs = _vocabulary(target), _vocabulary(draft)
    if not mine or not theirs or mine == theirs:
        return
    inverse = {i: token for token, i in theirs.items()}
    wrong = sorted(i for token, i in mine.items() if inverse.get(i) != token)
    where = f"{len(wrong)} ids differ" + (f", first id {wrong[0]}" if wrong else "")
    raise ValueError(f"draft and target have different vocabularies ({where}); use models of one tokenizer")


def load(
    target: str | Path = "reference",
    draft: str | Path | Sequence[str | Path] | None = "reference",
    dtype: str = "auto",
    device: str = "auto",
    weights: str = "auto",
) -> Models:
    """Load a target and a draft (None for none) from shipped names or Hugging Face folders.

    Several drafts, from the smallest, are the lower models of a cascade; the first of them is also the draft of two-model
    methods.
    `dtype` is "auto", "float32" or "bfloat16"; `weights` is "int4", "dense" or "auto" for AWQ checkpoints. Raises
    FileNotFoundError for a missing folder or file, ValueError for wrong digests, architectures or unequal vocabularies.
    """
    import torch

    device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    folders = {"target": folder_of(target, "target")} | _draft_folders(draft)
    for role in list(folders)[1:]:
        check_tokenizers(folders["target"], folders[role])
    made = {role: Transformer.load(f, dtype, device, weights if role == "target" else "auto") for role, f in folders.items()}
    between = tuple(model for role, model in made.items() if role.startswith("between"))
    tokenizer, exits = _tokenizer(folders["target"]), _exits(folders["target"], made["target"])
    return Models(made["target"], made.get("draft"), tokenizer, folders, between=between, exits=exits)


def _draft_folders(draft: str | Path | Sequence[str | Path] | None) -> dict[str, Path]:
    """The folder of each role below the target: draft, between-1, between-2, ..."""
    if draft is None or (not isinstance(draft, (str, Path)) and not draft):
        return {}
    names = [draft] if isinstance(draft, (str, Path)) else draft
    return {f"between-{i}" if i else "draft": folder_of(name, "draft") for i, name in enumerate(names)}


def _exits(folder: Path, target: Transformer) -> dict[int, ExitAdapter]:
    """The exit adapters that a checkpoint folder brings along."""
    return load_exits(folder / EXITS_FILE, target) if (folder / EXITS_FILE).exists() else {}


def spans(model: Transformer, stops: Sequence[int], context: int | None = None, reuse: bool = True) -> list[SpanReader]:
    """Readers of one model up to each of `stops`; each continues from the rows of the one below, or reads anew without reuse."""
    chain: list[SpanReader] = []
    for stop in stops:
        chain.append(SpanReader(model, stop, chain[-1] if chain and reuse else None, context))
    return chain
