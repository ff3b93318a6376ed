"""Small tables with the columns of the three experiments and known answers, for tests of readings and figures."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import pandas

from flashspec.study import figures
from flashspec.study.style import Picture

REPEATS = range(5)
MACHINE = "a made-up machine, 2026-01-01"


def results(name: str, rows: list[dict] | pandas.DataFrame) -> SimpleNamespace:
    """What `Results` offers to a figure."""
    return SimpleNamespace(frame=pandas.DataFrame(rows), machine=MACHINE, path=Path(f"results/{name}/0123abcd.csv"), origin={})


def drawn(**makers: list[Callable]) -> dict[str, Callable[[], Picture]]:
    """Figures by name, each drawn from the tables that its functions make."""
    return {name: partial(picture, name, made) for name, made in makers.items()}


def picture(name: str, makers: list[Callable]) -> Picture:
    """One figure of freshly made tables."""
    return getattr(figures, name)(*(make() for make in makers))


def projection(gain: float = 4.0) -> SimpleNamespace:
    """FlashHead at 256 probes is exactly `gain` times faster than the fastest dense head."""
    heads = [("dense-bf16", 0, 1.0), ("dense-fp32", 0, 1.9), *(("flash", p, p / 256 / gain) for p in (64, 128, 256, 512))]
    return results("projection", [
        {"shape": shape, "vocab": 1000, "hidden": 64, "head": head, "probes": probes, "rows_scored": 10,
         "bytes": int(2e6 * time), "seconds": scale * time * (1 + 0.01 * repeat), "repeat": repeat, "bandwidth": 2e9}
        for (shape, scale), (head, probes, time), repeat in product(
            (("reference", 1e-3), ("qwen3-0.6b", 2e-2)), heads, REPEATS)
    ])  # fmt: skip


def draft_step(share: float = 0.5, gain: float = 4.0) -> SimpleNamespace:
    """The head takes `share` of the dense step and is `gain` times faster as a FlashHead."""
    return results("draft_step", [
        {"shape": shape, "layers": 2, "head": head, "probes": probes, "body_seconds": (1 - share) * 1e-3,
         "head_seconds": share * time * 1e-3, "step_seconds": (1 - share + share * time) * 1e-3 * (1 + 0.01 * repeat),
         "bytes": 1000, "repeat": repeat, "bandwidth": 2e9}
        for shape, (head, probes, time), repeat in product(
            ("reference", "reference-shallow", "qwen3-0.6b"), (("dense", 0, 1.0), ("flash", 256, 1 / gain)), REPEATS)
    ])  # fmt: skip


def end_to_end() -> SimpleNamespace:
    """k = 4 is the best block; FlashHead is 10 % faster than dense; deferral gives another 20 %."""
    speed = {"dense": 2.0, "flash": 2.2}
    blocks = {2: 0.8, 4: 1.0, 8: 0.7}
    rows = [
        {**point(draft, method, finalize, temperature, kind, k), "repeat": repeat,
         "seconds": 1.0 / (speed[method] * blocks[k] * (1.2 if finalize == "deferred" else 1.0)) * (1 + 0.01 * repeat)}
        for draft, method, finalize, temperature, kind, k, repeat in product(
            ("main", "shallow"), speed, ("eager", "deferred"), (0.0, 1.0), ("code", "prose"), blocks, REPEATS)
    ]  # fmt: skip
    base = [
        {**point(draft, "baseline", "deferred", temperature, kind, 0), "accepted": 0, "repeat": repeat, "seconds": 1.0}
        for draft, temperature, kind, repeat in product(("main", "shallow"), (0.0, 1.0), ("code", "prose"), REPEATS)
    ]
    return results("end_to_end", rows + base)


def point(draft: str, method: str, finalize: str, temperature: float, kind: str, k: int) -> dict:
    """The counts of one run of 100 tokens; every method prints one text a kind and temperature."""
    text = f"{kind} {temperature}"
    return {"draft": draft, "method": method, "finalize": finalize, "temperature": temperature, "rule": "coupling", "k": k,
            "probes": 256 if method == "flash" else 0, "kind": kind, "prompts": 1, "rounds": 40, "drafted": 40 * k,
            "accepted": 60, "emitted": 100, "forwards": 40, "text_digest": text, "twin_digest": text if k < 4 else "",
            "divergence_at": None, "gap": None, "noise": None, "draft_seconds": 1e-3, "check_seconds": 4e-3,
            "step_seconds": 3e-3, "prefill_seconds": 2e-3, "overhead_seconds": 0.0}  # fmt: skip


def peers() -> SimpleNamespace:
    """flashspec is twice as fast, plain and assisted."""
    return results("peers", [
        {"engine": engine, "mode": "assisted" if k else "plain", "dtype": dtype, "k": k, "kind": "code", "prompt": prompt,
         "emitted": 48, "seconds": pace / (1 + k), "repeat": repeat, "text_digest": "a", "twin_digest": "a",
         "divergence_at": None, "gap": None, "noise": None}
        for (engine, pace), dtype, k, prompt, repeat in product(
            (("flashspec", 0.5), ("transformers", 1.0)), ("bfloat16", "float32"), (0, 2, 4), (0, 1), REPEATS)
    ])  # fmt: skip
