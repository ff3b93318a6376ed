"""Small tables about draft heads with known answers, for tests of readings and figures."""

from __future__ import annotations

from itertools import product
from types import SimpleNamespace

import tables

VOCAB, ROW = 16384, 768
BANDS = {"1-64": 600, "65-512": 300, "513-16384": 100}


def recall(kept: float = 0.5) -> SimpleNamespace:
    """A plain FlashHead misses 40 of 1000 rows at its default probes, a calibrated one `kept` of them; at 20 % 10 are missed."""
    rows = [judged("int8", 16384, 10), judged("fr_spec", 4096, 100)]
    for metric, homes, size, always in product(("spherical", "euclidean"), (1, 2), (8, 16), (0, 64)):
        lost = {"default": 40 * (kept if always else 1) + (10 if metric == "euclidean" else 0), "0.2": 10}
        for plan, scored in (("default", 2048), ("0.2", 3276)):
            facts = {"metric": metric, "homes": homes, "cluster_size": size, "always": always, "plan": plan}
            rows.append(judged("flash", scored, int(lost[plan]), **facts))
    return tables.results("head_recall", [each for group in rows for each in group])


def judged(head: str, scored: int, missed: int, **facts: object) -> list[dict]:
    """One head's rows, a band each; all misses are of frequent ids."""
    own = {"head": head, "metric": "", "homes": 0, "cluster_size": 0, "always": 0, "probes": 64, "plan": "default", **facts}
    return [
        {**own, "rows_scored": scored, "vocab": VOCAB, "bytes": scored * ROW, "band": band, "positions": count,
         "agreed": count - (missed if band == "1-64" else 0), "covered": 0.9 * count,
         **{f"required_{percent}": percent for percent in (50, 90, 99)}}
        for band, count in BANDS.items()
    ]  # fmt: skip


def cost() -> SimpleNamespace:
    """int8 is the fastest at the small width, FlashHead with 256 probes at the large one; one shape did not fit."""
    speed = {("dense", 0): 10.0, ("int8", 0): 5.0, ("int4", 0): 6.0, ("flash", 64): 2.0, ("flash", 256): 4.0,
             ("preview", 2048): 3.0}  # fmt: skip
    rows = [
        {"vocab": 16384, "hidden": width, "head": head, "size": size, "rows_scored": 100, "bytes": int(1e6 * pace),
         "seconds": (pace if head != "flash" or width > 384 else 2 * pace) * 1e-3 * (1 + 0.01 * repeat), "repeat": repeat,
         "bandwidth": 2e9, "note": ""}
        for width, ((head, size), pace), repeat in product((384, 1024), speed.items(), tables.REPEATS)
    ]  # fmt: skip
    lost = {"vocab": 262144, "hidden": 5120, "head": "", "size": 0, "rows_scored": 0, "bytes": 0, "seconds": None, "repeat": 0,
            "bandwidth": 2e9, "note": "left out: needs 16.1 GB, 8.0 GB are free"}  # fmt: skip
    return tables.results("head_cost", [*rows, lost])


def calls(fixed: float, pace: float) -> SimpleNamespace:
    """FlashHead takes `fixed` seconds a call and `pace` times what memory allows for its bytes, the dense head 0.1 ms and 0.8."""
    heads = {"flash": (64, 1, fixed, pace), "dense": (0, 10, 1e-4, 0.8)}
    return tables.results("head_cost", [
        {"vocab": vocab, "hidden": 1024, "head": head, "size": size, "rows_scored": 100, "bytes": vocab * 2000000 // 16384 * more,
         "seconds": least + times * (vocab * 2000000 // 16384 * more) / 2e9, "repeat": repeat, "bandwidth": 2e9, "note": ""}
        for vocab, (head, (size, more, least, times)), repeat in product(
            (16384, 65536, 262144), heads.items(), tables.REPEATS)
    ])  # fmt: skip


def build() -> SimpleNamespace:
    """A build takes as many seconds as it has clusters, half of them for clustering, four tenths for balancing."""
    return tables.results("head_build", [
        {"vocab": vocab, "hidden": 1024, "cluster_size": size, "threads": 2, "clustering_seconds": 0.5 * vocab / size,
         "balancing_seconds": 0.4 * vocab / size, "permutation_seconds": 0.1 * vocab / size, "repeat": 0}
        for vocab, size in product((1600, 16000), (16, 64))
    ])  # fmt: skip


def tar(int8: float = 120.0) -> SimpleNamespace:
    """Tokens a second: int8 as given, FlashHead 110 at 64 probes and 100 at 256, where it agrees often enough; plain 90."""
    paces = {("baseline", 0, 0): (90.0, None), ("dense", 0, 0): (95.0, 1000), ("int8", 0, 0): (int8, 995),
             ("flash", 64, 0): (110.0, 960), ("flash", 256, 0): (100.0, 990), ("in_context", 0, 2048): (80.0, None)}  # fmt: skip
    return tables.results("head_tar", [
        {"draft": "main", "head": head, "probes": probes, "shortlist": listed, "temperature": temperature, "rule": "speculative",
         "k": 0 if head == "baseline" else 4, "kind": kind, "prompts": 1, "rounds": 100 if head == "baseline" else 40,
         "drafted": 160, "accepted": 60, "emitted": 100, "seconds": 100 / pace * (1 + 0.01 * repeat), "repeat": repeat,
         "positions": agreed and 1000, "agreed": agreed, "covered": agreed and 950.0}
        for ((head, probes, listed), (pace, agreed)), temperature, kind, repeat in product(
            paces.items(), (0.0, 0.7, 1.0), ("code", "prose"), tables.REPEATS)
    ])  # fmt: skip


def depth(slower: float = 1.0) -> SimpleNamespace:
    """A layer takes 1 ms, the dense head 4 ms, FlashHead 1 ms; steps are their sums, FlashHead's times `slower`."""
    return tables.results("depth_times_head", [
        {"shape": "qwen3-0.6b", "layers": layers, "head": head, "probes": probes, "body_seconds": layers * 1e-3,
         "head_seconds": seconds, "step_seconds": (layers * 1e-3 + seconds) * (slower if probes else 1) * (1 + 0.01 * repeat),
         "bytes": 1000, "repeat": repeat, "bandwidth": 2e9}
        for layers, (head, probes, seconds), repeat in product(
            (1, 4, 28), (("dense", 0, 4e-3), ("flash", 256, 1e-3)), tables.REPEATS)
    ])  # fmt: skip


DRAWN = tables.drawn(
    head_recall=[recall], head_clusters=[recall], head_bands=[recall], head_required=[recall], head_cost=[cost],
    head_build=[build], head_tar=[tar], head_choice=[tar], depth_times_head=[depth],
)  # fmt: skip
