"""A family of drafts of the reference target: depth against width at matched budgets, and what training and teaching add.

Every point keeps the target's hidden width, so all of them read the same vocabulary head and differ in the body alone. A
budget is a number of body parameters, named in whole layers of the target; points of one budget agree within TOLERANCE.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from flashspec.decoding.models import Models
from flashspec.models.config import ModelConfig
from flashspec.train.design import Design, Place, make_draft, speculative

TOLERANCE = 0.05
STEPS = 400
TAUGHT = Design(steps=STEPS, decay=STEPS * 3 // 4, written=768, save_every=100, dtype="bfloat16")  # how every point is trained

BUDGETS: dict[int, dict[str, Design]] = {
    1: {
        "wide-1": replace(TAUGHT, layers=1, heads=6, kv_heads=2, ffn=1024),
        "wide-2": replace(TAUGHT, layers=2, heads=3, kv_heads=1, ffn=512),
        "wide-3": replace(TAUGHT, layers=3, heads=3, kv_heads=1, ffn=288),
        "wide-4": replace(TAUGHT, layers=4, heads=2, kv_heads=1, ffn=216),
        "deep-5": replace(TAUGHT, layers=5, heads=2, kv_heads=1, ffn=144),
        "deep-6": replace(TAUGHT, layers=6, heads=2, kv_heads=1, ffn=104),
        "deep-7": replace(TAUGHT, layers=7, heads=1, kv_heads=1, ffn=112),
        "deep-8": replace(TAUGHT, layers=8, heads=1, kv_heads=1, ffn=88),
    },
    2: {
        "wide2-2": replace(TAUGHT, layers=2, heads=6, kv_heads=2, ffn=1024),
        "wide2-3": replace(TAUGHT, layers=3, heads=4, kv_heads=2, ffn=648),
        "wide2-4": replace(TAUGHT, layers=4, heads=3, kv_heads=1, ffn=512),
        "deep2-8": replace(TAUGHT, layers=8, heads=2, kv_heads=1, ffn=216),
    },
}
CAPABILITY = {
    "pruned": replace(BUDGETS[2]["wide2-2"], steps=0),
    "quarter": replace(BUDGETS[2]["wide2-2"], steps=STEPS // 4, decay=STEPS // 4 - 10),
    "half": replace(BUDGETS[2]["wide2-2"], steps=STEPS // 2, decay=STEPS * 3 // 8),
    "double": replace(BUDGETS[2]["wide2-2"], steps=STEPS * 2, decay=STEPS * 3 // 2),
    "taught-by-text": replace(BUDGETS[2]["wide2-2"], distilled=False),
}
FAMILY = {name: design for points in (*BUDGETS.values(), CAPABILITY) for name, design in points.items()}


def budget(target: ModelConfig, layers: int) -> int:
    """Body parameters of this many whole layers of the target."""
    return layers * target.layer_parameters


def build(name: str, models: Models, stream: np.ndarray, folder: Path) -> Path:
    """One point, trained (or continued) in folder/work and finished in folder/models; a finished one is left alone."""
    if name not in FAMILY:
        raise ValueError(f"the family has no {name!r}; it has: {', '.join(FAMILY)}")
    work, out = folder / "work", folder / "models" / name
    if (out / "digests.json").exists():
        return out
    return make_draft(models, stream, Place(work / name, out, work / "shared"), FAMILY[name], speculative(out, 4))
