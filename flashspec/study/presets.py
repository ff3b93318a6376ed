"""Parameters worth a name, of races and of parts; the names are those of the studies that asked first."""

from __future__ import annotations

from typing import Any

from flashspec.models.family import FAMILY as POINTS

MODELS = "runs/family/models"
MANY = (
    ("main", "shallow", "designed", "deep2-8", "wide-4"),
    ("wide2-3", "deep-5", "wide-3", "wide2-4", "deep-6"),
)  # races of a few drafts on many prompts
HEADS = ("dense", "int8", "flash")
EVERY_HEAD = (*HEADS, "int4", "flash_int8", "flash_int4", "ivf", "ivfpq", "hnsw", "in_context", "preview")
BOTH = ("coupling", "speculative")
LENGTHS = tuple(range(1, 13))
EXITS = {"exit": tuple(range(1, 8)), "verify_exit": tuple(range(2, 9))}
SCHEDULES = {**EXITS, "interval": tuple(range(2, 9)), "k": (1, 2, 3, 4)}
HIERARCHIES = ("self_speculation", "hispec")


def said(**values: Any) -> dict[str, Any]:
    """What a preset says; everything else stays at its default."""
    return values


def drafts(names: tuple[str, ...]) -> tuple[str, ...]:
    """Drafts by the names that a race loads them with."""
    return tuple(f"{MODELS}/{name}" if name in POINTS else name for name in names)


FAMILY = drafts(("main", "shallow", "designed", *POINTS))
RACE: dict[str, dict[str, Any]] = {
    "smoke": said(head=("dense", "flash"), k=(2,), temperature=(0.0,), new_tokens=8, repeats=1, twins=1),
    "end_to_end": said(
        draft=("main", "shallow"), head=HEADS, finalize=("eager", "deferred"), k=(1, 2, 3), probes=(32, 64), rule=BOTH,
        per_kind=4, new_tokens=96, twins=1, parts=16,
    ),
    "sweep_350": said(draft=(), head=HEADS, k=(1, 2, 3, 4, 6), temperature=(0.0, 0.7, 1.0), per_kind=24, repeats=1, parts=24),
    "draft_throughput": said(draft=FAMILY, k=LENGTHS, per_kind=5, repeats=1, parts=10),
    **{
        f"many-{number}": said(draft=drafts(names), k=LENGTHS, per_kind=24, repeats=1, parts=24)
        for number, names in enumerate(MANY, 1)
    },
    "draft_generalises": said(
        target=("reference", "runs/variants/fine-tuned", "runs/variants/independent"), draft=(), k=(1, 2, 3, 4), per_kind=4,
        seed=2, parts=0,
    ),
    "acceptance": said(draft=("main", "shallow"), head=HEADS, rule=BOTH, per_kind=16, new_tokens=32, repeats=1, parts=0),
    "head_tar": said(
        head=EVERY_HEAD, probes=(32, 64, 128, 256), shortlist=(512, 2048), temperature=(0.0, 0.7, 1.0), rule=("speculative",),
        per_kind=4, parts=0,
    ),
    "hispec_grid": said(
        method=HIERARCHIES, **SCHEDULES, rule=("speculative",), new_tokens=24, repeats=1, screen=4, parts=1,
    ),
    "hispec_end_to_end": said(
        method=("draft_model", "lookup", *HIERARCHIES, "hispec_adaptive"), exit=(1, 2, 3, 5), verify_exit=(4, 6, 8),
        k=(2, 3, 4), interval=(4, 6), rule=BOTH, per_kind=4, repeats=1, screen=3, parts=8, twins=1,
    ),
    "hispec_flash": said(
        draft=("main", "shallow"), method=("draft_model", *HIERARCHIES), head=("dense", "flash"), finalize=("eager", "deferred"),
        exit=(1, 2, 4), verify_exit=(6,), k=(2,), interval=(4,), rule=("speculative",), per_kind=4, repeats=1, parts=8, twins=1,
    ),
    "peers": said(
        engine=("flashspec", "transformers"), k=(2, 4), temperature=(0.0,), dtype=("bfloat16", "float32"), per_kind=4,
        new_tokens=48, twins=1, parts=0,
    ),
}  # fmt: skip

UNTRAINED = ("dense", "int8", "int4", "flash", "flash_int8", "flash_int4", "fr_spec", "in_context", "preview")
GRID = tuple(f"{ids}x{width}" for ids in (16384, 65536, 151936, 262144) for width in (384, 1024, 2560, 5120))
STEP = ("step", "body", "head")
SHAPES = {"shape": ("reference-draft", "reference-shallow", "qwen3-0.6b"), "head": HEADS, "probes": (64, 128, 256, 512)}
PARTS: dict[str, dict[str, Any]] = {
    "smoke": said(piece=("projection", *STEP, "burst", "check"), shape=("reference-shallow",), past=8, repeats=3),
    "projection": said(piece=("projection",), **SHAPES),
    "draft_step": said(piece=("projection", *STEP), **SHAPES),
    "depth_times_head": said(piece=STEP, shape=("qwen3-0.6b",), layers=(1, 2, 4, 8, 16, 28), probes=(256,)),
    "head_cost": said(piece=("projection",), shape=GRID, head=UNTRAINED, probes=(64, 256), repeats=7),
    "formats": said(
        piece=("check",), shape=("reference-target",), format=("bfloat16", "float32", "int4"), rows=tuple(range(1, 10)), past=128,
    ),
    "draft_latency": said(
        piece=("step", "body"), shape=("OPT-125M", "OPT-1.3B", "Qwen3-0.6B"), spread=(1, 2, 4), head=("dense",), past=128,
        repeats=7,
    ),
}  # fmt: skip

RECALL: dict[str, dict[str, Any]] = {
    "smoke": said(per_kind=2, new_tokens=8, cluster_size=(64,), share=(0.2,)),
    "head_recall": said(
        head=("int8", "int4", "preview", "fr_spec", "vocab_trim", "ivf", "ivfpq", "hnsw"), cluster_size=(8, 16, 32, 64),
    ),
    "head_build": said(shape=("16384x1024", "65536x1024", "151936x1024")),
}  # fmt: skip
