"""Numbers printed in the three reproduced works, and the decision page, whose presets come from them and from stored tables.

The page's sliders are those of `data/decision.toml`; `book/_static/decide.js` draws them.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from flashspec.decoding.models import SHIPPED
from flashspec.models.synthetic import shape
from flashspec.study import compare, stages
from flashspec.study.frames import DataFrame, framed, having
from flashspec.study.quote import shown
from flashspec.study.registry import stored
from flashspec.study.tables import Results
from flashspec.theory import acceptance_for, decision, implied_step, tokens_per_check

if TYPE_CHECKING:
    from IPython.display import HTML

PRINTED = tomllib.loads((SHIPPED / "papers.toml").read_text(encoding="utf-8"))  # by the key of a work in the bibliography
THESIS, YAN, HISPEC = (PRINTED[name] for name in ("thesis2026", "yan2024decoding", "hispec2025"))
YAN_DRAFTS = {"deep": "Sheared-LLaMA-1.3B", "wide": "NoFT-Wide-1.3B"}
LABELS = {
    "S": "Printed in the abstract",
    "N": "From a reading note of the paper",
    "C": "Computed from printed figures",
    "I": "Our reading of the abstract",
}
DESCRIBED = tomllib.loads((SHIPPED / "decision.toml").read_text(encoding="utf-8"))
PAGE = """<section id="decision-tool" aria-label="Decision tool"><p>The sliders are in the built book.</p></section>
<script type="application/json" id="decide-data">{data}</script>
<details><summary>How close the presets come</summary>{table}</details>"""


class Preset(NamedTuple):
    """Values for every slider, where they come from, and the tokens a second measured or printed for them with a head."""

    label: str
    note: str
    values: dict[str, float]
    rate: float = float("nan")
    head: str = "flash"

    @property
    def setting(self) -> decision.Setting:
        """The values as the formulas take them."""
        return decision.Setting(**self.values)  # type: ignore[arg-type]


def presets(root: Path | None = None) -> dict[str, Preset]:
    """Those of pairs whose races are stored, then those of papers, in which gaps are filled as in the first."""
    found = {pair["name"]: preset for pair in DESCRIBED["pair"] if (preset := measured(pair, root))}
    if not found:
        start = {field["name"]: field["start"] for field in DESCRIBED["field"]}
        found["start"] = Preset("made-up numbers", "Assumed.", {**start, "exits": 0})
    first = next(iter(found.values()))
    yan = {f"yan-{draft}": _yan(first, draft) for draft in YAN_DRAFTS}
    return found | {"thesis": _thesis(first), **yan, "hispec": _hispec(first)}


def measured(pair: Mapping[str, Any], root: Path | None = None) -> Preset | None:
    """The preset of a pair, greedy with a deferred final token; None where a race is not stored.

    Its rate is of decoding alone: the time in which the prompts were read, as timed by itself, is taken off.
    """
    chosen = [{**pair["draft"], "head": "dense"}, *({**pair[name], "head": "flash"} for name in ("draft", "one", "two"))]
    races, runs = dict[str, Results](), list[DataFrame]()
    for which in chosen:
        name = which.pop("race")
        if not (found := stored("race", root, name)):
            return None
        races[name], wanted = found, {**which, "temperature": 0, "finalize": "deferred"}
        runs.append(compare.best(found.frame[having(found.frame, wanted)]))
    where = ", ".join(f"race/{race.path.stem}" for race in races.values())
    machine = " and ".join(dict.fromkeys(race.machine for race in races.values()))
    note = f"Measured, greedy ({where}; {machine}). Exits: {pair['first']}, with FlashHead."
    own = runs[1]
    reading = own["prompts"].sum() * own["prefill_seconds"].median()
    rate = float(own["emitted"].sum() / (own["seconds"].sum() - reading))
    return Preset(pair["label"], note, _rounded({**_values(runs), "k": own["k"].iloc[0]}), rate)


def _values(runs: list[DataFrame]) -> dict[str, float]:
    """What sliders are set to by runs of a draft with a dense head and with FlashHead, of one exit and of two."""
    dense, flash, one, two = (stages.rounds(rows, ["method"]).iloc[0] for rows in runs)
    ms, slope = 1e3 * dense["step"], max(0.0, dense["check_1"] - 1.0) / dense["waiting"]
    return {
        "step": ms, "slope": slope, "final": dense["finalize"], "draft": ms * dense["token"], "alpha": dense["alpha_1"],
        "share": dense["scores"] / dense["token"], "gain": dense["scores"] / flash["scores"],
        "loss": max(0.0, 1.0 - flash["alpha_1"] / dense["alpha_1"]), "exits": 2, "first": ms * one["token"],
        "first_alpha": one["alpha_1"], "first_rest": one["check_1"] / (1.0 + slope * one["waiting"]),
        "middle": ms * two["check_1"], "middle_alpha": two["alpha_1"], "whole_alpha": two["alpha_2"],
        "whole_rest": two["check_2"] / (1.0 + slope * two["waiting"]),
    }  # fmt: skip


def printed(base: Preset, title: str, known: Mapping[str, Mapping[str, float]], rate: float, head: str = "dense") -> Preset:
    """A preset of what a work gives by the label of its source; the note says what it prints and what it leaves open."""
    values, note = {**base.values, "exits": 0}, []
    for label in (each for each in LABELS if each in known):
        values |= known[label]
        names = [field["label"] for field in DESCRIBED["field"] if field["name"] in known[label]]
        note.append(f"{LABELS[label]} [{label}]: {', '.join(names)}.")
    note.append(f"Everything else: not printed, taken from {base.label}.")
    return Preset(title, " ".join(note), _rounded(values), rate, head)


def head_share() -> float:
    """The head's share of the thesis's dense draft step, from the time saved and the step's speedup."""
    saved = THESIS["projection_dense_ms"] - THESIS["projection_flash_ms"]
    return THESIS["projection_dense_ms"] / implied_step(saved, THESIS["draft_step"])


def _thesis(base: Preset) -> Preset:
    """The target's step is the one with which the dense draft and an eager final token are as fast as printed."""
    s = base.setting
    draft = THESIS["projection_dense_ms"] / head_share()
    spent = 1e3 * tokens_per_check(s.alpha, s.k) / THESIS["eager_dense"] - s.k * draft
    computed = {"draft": draft, "share": head_share(), "step": spent / (1.0 + s.slope * (s.k - 1) + s.final)}
    known = {"S": {"gain": THESIS["projection"]}, "C": computed}
    return printed(base, "Thesis: Qwen3-32B with Qwen3-0.6B", known, THESIS["deferred_flash"], "flash")


def _yan(base: Preset, draft: str) -> Preset:
    """A check of eight rows takes what the deep draft's rate leaves, and as long as a step: one prefill-like pass."""
    k, model = YAN["k"], shape(YAN_DRAFTS[draft])
    step = 1e3 * YAN["deep_tar"] / YAN["deep_rate"] - k * YAN["deep_draft_ms"]
    share = model.head_parameters / (model.head_parameters + model.body_parameters)
    computed = {"step": step, "slope": 0.0, "alpha": acceptance_for(YAN[f"{draft}_tar"], k), "share": share}
    known = {"N": {"draft": YAN[f"{draft}_draft_ms"], "k": k}, "C": computed}
    return printed(base, f"Decoding Speculative Decoding: LLaMA-65B, {draft} draft", known, YAN[f"{draft}_rate"])


def _hispec(base: Preset) -> Preset:
    """Costs in proportion to the layers and heads that are read."""
    model, s = shape("Llama-3-8B"), base.setting
    low, high, layers = HISPEC["first_exit"], HISPEC["second_exit"], model.layers
    head = model.head_parameters * layers / model.body_parameters
    one, two = HISPEC["one_exit_accepted"], HISPEC["two_exits_accepted"]
    sizes = {"first": s.step * (low + head), "middle": s.step * (high - low + head)}
    sizes |= {"first_rest": layers - low + head, "whole_rest": layers - high + head}
    computed = {name: size / (layers + head) for name, size in sizes.items()} | {"middle_alpha": one / two}
    known = {"N": {"exits": 2, "first_alpha": one, "whole_alpha": two}, "C": computed}
    return printed(base, "HiSpec: Llama-3-8B, two exits", known, float("nan"))


def _rounded(values: Mapping[str, float]) -> dict[str, float]:
    return {name: int(value) if name in ("k", "exits") else float(f"{value:.3g}") for name, value in values.items()}


def decision_tool(root: Path | None = None) -> HTML:
    """The decision tool, which the built book draws, above a table of presets beside what was measured or printed."""
    from IPython.display import HTML

    found, lines = presets(root), []
    for each in found.values():
        number = decision.decision(each.setting)
        both = (f"{rate:.3g}" if rate == rate else "not printed" for rate in (number["plain"] * number[each.head], each.rate))
        rates = dict(zip(("tokens/s by these formulas", "measured or printed"), both, strict=True))
        what = {"preset": each.label, "with": f"{each.head} head, k = {each.values['k']}"}
        lines.append({**what, **rates, "where its numbers come from": each.note})
    known = [{"name": name, "label": each.label, "note": each.note, "values": each.values} for name, each in found.items()]
    data = json.dumps({"fields": DESCRIBED["field"], "presets": known}).replace("<", "\\u003c")
    return HTML(PAGE.format(data=data, table=shown(framed(lines)).data))
