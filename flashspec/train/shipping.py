"""What of the family ships: one whole draft under the name "designed", and of every point its facts without the weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from flashspec.decoding.models import Models, load
from flashspec.measure.trace import Trace, check_target, proposals
from flashspec.models.writing import fresh_folder, write_json
from flashspec.train.design import speculative
from flashspec.train.package import write_digests
from flashspec.train.reference import LICENCE, add_flash_head

DESIGNED = "designed"
LIMIT = 92_000_000
FACTS = ("README.md", "config.json", "design.json", "choice.json", "curve.jsonl", "digests.json", "speculative.json")
PROPOSALS = "proposals.json"


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def ship(point: Path, shelf: Path, stream: np.ndarray, k: int) -> Path:
    """Copy a finished point into `shelf` as the designed draft, with a FlashHead calibrated on the stream and its own digests.

    Raises FileNotFoundError for an unfinished point, FileExistsError where a designed draft ships already, ValueError where
    all shipped models together would exceed LIMIT bytes; then nothing is written.
    """
    out = shelf / DESIGNED
    if not (point / "digests.json").exists():
        raise FileNotFoundError(f"{point} is no finished point; build it with `flashspec draft family {point.name}`")
    if out.exists():
        raise FileExistsError(f"a designed draft ships already and is frozen; remove {out} if it has not been published")
    about = speculative(Path("flashspec") / "data" / DESIGNED, k)
    _refuse_excess(size_of(shelf) + size_of(point))
    with fresh_folder(out, [point]) as part:
        shutil.copytree(point, part, dirs_exist_ok=True)
        write_json(about, part / "speculative.json")
        _licensed(part / "README.md")
        write_digests(part)
        add_flash_head(part, stream)
        write_digests(part)
        _refuse_excess(size_of(shelf))
    return out


def _licensed(card: Path) -> None:
    """Give the card of a shipped draft its name and its licence in the place of its title."""
    facts = card.read_text(encoding="utf-8").partition("\n\n")[2] if card.exists() else ""
    card.write_text(f"# flashspec reference model: {DESIGNED}\n\n{LICENCE}\n\n{facts}", encoding="utf-8")


def _refuse_excess(total: int) -> None:
    """Refuse shipped models of so many bytes together, the FlashHeads included."""
    if total > LIMIT:
        raise ValueError(f"all shipped models would take {total:,} bytes and {LIMIT:,} are allowed; ship a smaller point")


def record_point(point: Path, target: str | Path, trace: Trace, out: Path) -> Path:
    """Keep a point's recipe, digests, curve, and what it proposes for every token of a trace of its target; no weights.

    The proposals are the dense head's on float32 layers. An earlier record is replaced. Raises ValueError for a trace of
    another target; then nothing is written.
    """
    models = load(target, point, "float32", "cpu", "dense")
    check_target(trace, models.folders["target"])
    with fresh_folder(out / point.name, [point], PROPOSALS) as found:
        for name in FACTS:
            if (point / name).exists():
                shutil.copyfile(point / name, found / name)
        write_json({"target": trace.target, "texts": proposed(models, trace)}, found / PROPOSALS)
    return out / point.name


def proposed(models: Models, trace: Trace) -> list[dict[str, Sequence[int] | str]]:
    """What the target wrote for each prompt, and what the draft would have written at the same places."""
    drawn = proposals(trace, models)
    return [{"kind": told.kind, "tokens": told.tokens, "proposed": ids} for told, ids in zip(trace.told, drawn, strict=True)]


def stands_of(record: Path) -> list[list[float]]:
    """Of a record's texts, which tokens its draft proposes: 1 or 0, as `theory.replayed` counts them."""
    texts = json.loads((record / PROPOSALS).read_text(encoding="utf-8"))["texts"]
    return [[float(a == b) for a, b in zip(text["tokens"], text["proposed"], strict=True)] for text in texts]
