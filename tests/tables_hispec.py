"""Small tables of the experiments on hierarchies with known answers."""

from __future__ import annotations

from dataclasses import fields
from itertools import product
from types import SimpleNamespace

import tables

from flashspec.study.hierarchies import Row

SETTINGS = ((0.0, "coupling"), (1.0, "speculative"))
RATES = {"baseline": 100.0, "dense": 140.0, "lookup": 90.0, "self_speculation": 130.0, "hispec": 170.0, "hispec_flash": 187.0}


def row(method: str, kind: str, repeat: int, setting: tuple[float, str], **changes) -> dict:
    """One row of 100 tokens at the method's rate; predictions are 10 % too high, and the head takes half a drafted token."""
    rate = changes.pop("rate", RATES[method]) * (1 + 0.01 * repeat)
    exits = {"self_speculation": (2, 0), "hispec": (2, 4), "hispec_flash": (2, 4)}.get(method, (0, 0))
    known = {
        "draft": "none", "method": method, "finalize": "deferred", "head": "dense", "probes": 0, "draft_exit": exits[0],
        "verify_exit": exits[1], "n_d": 2, "n_i": 4, "temperature": setting[0], "rule": setting[1], "kind": kind, "prompts": 1,
        "rounds": 30, "drafted": 120, "accepted": 70, "emitted": 100, "forwards": 30, "layer_tokens": 1800, "seconds": 100 / rate,
        "repeat": repeat, "draft_seconds": 1e-3, "head_seconds": 5e-4, "check_1_seconds": 2e-3, "check_2_seconds": 8e-3,
        "prefill_seconds": 0.0, "predicted": 1.1 * rate, "text_digest": f"{kind} {setting}",
        "stage": "timed",
        "twin_digest": f"{kind} {setting}" if setting[1] == "coupling" else "", "divergence_at": None, "gap": None, "noise": None,
    }  # fmt: skip
    return {**dict.fromkeys([f.name for f in fields(Row)], 0), **known, **changes}


PRICES = (1e-4, 1e-5, 2e-4, 5e-5)


def judged(row: dict) -> dict:
    """Seven of ten tokens stand at level 1, eight of ten at level 2; costs are PRICES, of 16 layers."""
    layer, more, head, each = PRICES
    deep, waits = row["method"] == "hispec", (row["n_d"], row["n_i"])
    spans = (row["draft_exit"], (row["verify_exit"] or 16) - row["draft_exit"], 16 - row["verify_exit"])
    cost = [span * (layer + more * n) + head + each * n for span, n in zip(spans, (1, waits[0] + 1, waits[1] + 1), strict=True)]
    counts = {"actions_1": 10, "waiting_1": 10 * waits[0], "kept_1": 7, "decided_1": 10}
    upper = {"actions_2": 10, "waiting_2": 10 * waits[1], "kept_2": 8, "decided_2": 10, "check_2_seconds": cost[2]}
    return {"draft_seconds": cost[0], "check_1_seconds": cost[1], **counts, **(upper if deep else {})}


def grid() -> SimpleNamespace:
    """HiSpec at exits 2 and 4 with N_d = 2 and N_i = 4 is the fastest schedule; every other is slower by its distance."""
    schedules = [
        row("hispec", kind, 0, (0.0, "speculative"), draft_exit=d, verify_exit=v, n_d=n_d, n_i=n_i,
            rate=170.0 - abs(d - 2) - abs(v - 4) - abs(n_d - 2) - abs(n_i - 4))
        for kind, d, v, n_d, n_i in product(("code", "prose"), (1, 2), (3, 4), (1, 2), (4, 6))
    ]  # fmt: skip
    alone = [row("self_speculation", "code", 0, (0.0, "speculative"), draft_exit=d, n_d=k, n_i=0) for d in (1, 2) for k in (2, 4)]
    rows = [{**each, **judged(each)} for each in schedules + alone]
    return tables.results("hispec_grid", [*rows, *(screened(each) for each in rows if each["kind"] == "code")])


def screened(row: dict) -> dict:
    """The same schedule in the screening: a decode takes what its actions take at PRICES, and a tenth of a second more."""
    layer, more, head, each = PRICES
    spans = (row["draft_exit"], (row["verify_exit"] or 16) - row["draft_exit"], 16 - row["verify_exit"])
    calls = (row["drafted"], row["actions_1"], row["actions_2"])
    rows = (row["drafted"], row["waiting_1"] + row["actions_1"], row["waiting_2"] + row["actions_2"])
    seconds = sum(c * (s * layer + head) + n * (s * more + each) for s, c, n in zip(spans, calls, rows, strict=True))
    free = dict.fromkeys(("draft_seconds", "head_seconds", "check_1_seconds", "check_2_seconds", "predicted"), 0.0)
    return {**row, **free, "stage": "screened", "seconds": 0.1 + seconds}


def contest(**changes) -> SimpleNamespace:
    """Every method at its rate; on prose HiSpec with a dense head is beaten by two models."""
    slow = {("hispec", "prose"): 120.0, ("hispec_flash", "prose"): 120.0}
    return tables.results("hispec_end_to_end", [
        row(method, kind, repeat, setting, rate=slow.get((method, kind), rate), **changes)
        for (method, rate), kind, repeat, setting in product(RATES.items(), ("code", "prose"), tables.REPEATS, SETTINGS)
    ])  # fmt: skip


def flash() -> SimpleNamespace:
    """FlashHead brings a tenth at exit 2, nothing at exit 3, where the head's share is smaller."""
    gains = {2: 1.1, 3: 1.0}
    return tables.results("hispec_flash", [
        row("hispec", "code", repeat, setting, draft_exit=depth, head=head, probes=64 if head == "flash" else 0,
            rate=170.0 * (gains[depth] if head == "flash" else 1.0), draft_seconds=0.5e-3 * depth)
        for depth, head, repeat, setting in product((2, 3), ("dense", "flash"), tables.REPEATS, SETTINGS)
    ])  # fmt: skip


def quality() -> SimpleNamespace:
    """Of 100 positions a verifier keeps 60, wrongly 12, and wrongly drops 8."""
    return tables.results("exit_quality", [
        {"depth": depth, "against": against, "layers": 16, "adapted": False, "kind": kind, "positions": 100, "same": 60,
         "right": 56, "both": 48, "in_top_2": 70, "in_top_5": 80, "in_top_10": 90, "overlap": 55.0, "loss": 400.0,
         "against_loss": 350.0}
        for depth, against, kind in product((1, 2, 4, 16), (2, 4, 16), ("code", "prose")) if depth < against
    ])  # fmt: skip


def training() -> SimpleNamespace:
    """Two depths that learn as well as each other."""
    return tables.results("exit_training", [
        {"step": step, "depth": depth, "layers": 16, "loss": 6.0 - step / 100, "overlap": 1.0 if depth == 16 else 0.7}
        for step, depth in product((100, 200), (2, 16))
    ])  # fmt: skip


def memory() -> SimpleNamespace:
    """A hierarchy keeps a twentieth more than plain decoding, whose bytes are 1000."""
    return tables.results("hierarchy_memory", [
        {"shape": shape, "method": method, "reuse": True, "draft_exit": 2, "verify_exit": 4, "weights": 800, "cache": 150,
         "rows": 50 + extra, "proposals": extra, "index": 10 * extra, "other": 0}
        for shape in ("one", "other") for method, extra in (("baseline", 0), ("hispec", 25))
    ])  # fmt: skip


def passes() -> SimpleNamespace:
    """20 layer-tokens for each final token with reuse, 26 without, as the closed form says."""
    costs = {("hispec", True): 20, ("hispec", False): 26, ("baseline", True): 16}
    return tables.results("layer_passes", [
        {"method": method, "reuse": reuse, "draft_exit": 2, "verify_exit": 4, "n_d": 2, "n_i": 4, "temperature": t,
         "rule": "speculative", "kind": kind, "prompts": 2, "emitted": 100, "rounds": 30, "drafted": 90,
         "layer_tokens": 100 * cost + 300,
         "prompt_layer_tokens": 300, "kept_1": 50, "decided_1": 70, "kept_2": 60, "decided_2": 75, "expected": float(cost)}
        for (method, reuse), cost in costs.items() for t in (0.0, 1.0) for kind in ("code", "prose")
    ])  # fmt: skip


DRAWN = tables.drawn(
    exit_agreement=[quality], exit_training=[training], verifier_accuracy=[quality], ceilings=[grid, quality],
    token_budget=[contest], hispec_heat=[grid, quality], hierarchy=[contest],
    hierarchy_kinds=[contest], hierarchy_memory=[memory], hispec_flash=[flash], layer_passes=[passes],
    nested_prediction=[contest], nested_stages=[grid], depth_forecast=[grid, quality],
)  # fmt: skip
