"""What of the family ships: one whole draft under the name "designed", and of every point its facts without the weights."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from flashspec.decoding.models import load
from flashspec.measure.trace import Trace, check_target, proposals
from flashspec.models.family import DESIGNED
from flashspec.models.writing import fresh_folder, write_json
from flashspec.train.design import speculative
from flashspec.train.package import write_digests
from flashspec.train.reference import LICENCE, add_flash_head

PROPOSALS = "proposals.json"
LIMIT = 92_000_000
FACTS = ("README.md", "config.json", "design.json", "choice.json", "curve.jsonl", "digests.json", "speculative.json")


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def ship(point: Path, shelf: Path, stream: np.ndarray, k: int) -> Path:
    """Copy a finished point into `shelf` as the designed draft, with a FlashHead calibrated on the stream and its own digests.

    Raises FileNotFoundError for an unfinished point, FileExistsError where a designed draft ships already, ValueError where
    all shipped models together would exceed LIMIT bytes; then nothing is written.
    """
    out, about = shelf / DESIGNED, speculative(Path("flashspec") / "data" / DESIGNED, k)
    if not (point / "digests.json").exists():
        raise FileNotFoundError(f"{point} is no finished point; build it with `flashspec draft family {point.name}`")
    if out.exists():
        raise FileExistsError(f"a designed draft ships already and is frozen; remove {out} if it has not been published")
    with fresh_folder(out, [point]) as part:
        shutil.copytree(point, part, dirs_exist_ok=True)
        write_json(about, part / "speculative.json")
        card = part / "README.md"
        facts = card.read_text(encoding="utf-8").partition("\n\n")[2] if card.exists() else ""
        card.write_text(f"# flashspec reference model: {DESIGNED}\n\n{LICENCE}\n\n{facts}", encoding="utf-8")
        write_digests(part)
        add_flash_head(part, stream)
        write_digests(part)
        if (total := size_of(shelf)) > LIMIT:
            raise ValueError(f"all shipped models would take {total:,} bytes and {LIMIT:,} are allowed; ship a smaller point")
    return out


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
        pairs = zip(trace.told, proposals(trace, models), strict=True)
        texts = [{"kind": told.kind, "tokens": told.tokens, "proposed": ids} for told, ids in pairs]
        write_json({"target": trace.target, "texts": texts}, found / PROPOSALS)
    return out / point.name
