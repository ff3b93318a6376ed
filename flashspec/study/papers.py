"""Numbers printed in the three reproduced works, and what each work gives of a decision."""

from __future__ import annotations

import tomllib
from typing import NamedTuple

from flashspec.decoding.models import SHIPPED
from flashspec.models.synthetic import shape
from flashspec.theory import acceptance_for, implied_step, tokens_per_check
from flashspec.theory.decision import Setting

PRINTED = tomllib.loads((SHIPPED / "papers.toml").read_text(encoding="utf-8"))  # by the key of a work in the bibliography
THESIS, YAN, HISPEC = (PRINTED[name] for name in ("thesis2026", "yan2024decoding", "hispec2025"))
YAN_DRAFTS = {"deep": "Sheared-LLaMA-1.3B", "wide": "NoFT-Wide-1.3B"}
LABELS = {
    "S": "Printed in the abstract",
    "N": "From a reading note of the paper",
    "C": "Computed from printed figures",
    "I": "Our reading of the abstract",
}


class Work(NamedTuple):
    """What a work gives of a decision, by the label of its source, and the tokens a second that it prints with which head."""

    title: str
    known: dict[str, dict[str, float]]
    rate: float = float("nan")
    head: str = "dense"


def head_share() -> float:
    """The head's share of the thesis's dense draft step, from the time saved and the step's speedup."""
    saved = THESIS["projection_dense_ms"] - THESIS["projection_flash_ms"]
    return THESIS["projection_dense_ms"] / implied_step(saved, THESIS["draft_step"])


def works(s: Setting) -> dict[str, Work]:
    """The three works as decisions, by a short name; what none prints is taken from a setting."""
    return {"thesis": _thesis(s), **{f"yan-{draft}": _yan(draft) for draft in YAN_DRAFTS}, "hispec": _hispec(s)}


def _thesis(s: Setting) -> Work:
    """The target's step is the one with which the dense draft and an eager final token are as fast as printed."""
    draft = THESIS["projection_dense_ms"] / head_share()
    spent = 1e3 * tokens_per_check(s.alpha, s.k) / THESIS["eager_dense"] - s.k * draft
    computed = {"draft": draft, "share": head_share(), "step": spent / (1.0 + s.slope * (s.k - 1) + s.final)}
    known = {"S": {"gain": THESIS["projection"]}, "C": computed}
    return Work("Thesis: Qwen3-32B with Qwen3-0.6B", known, THESIS["deferred_flash"], "flash")


def _yan(draft: str) -> Work:
    """A check of eight rows takes what the deep draft's rate leaves, and as long as a step: one prefill-like pass."""
    k, model = YAN["k"], shape(YAN_DRAFTS[draft])
    step = 1e3 * YAN["deep_tar"] / YAN["deep_rate"] - k * YAN["deep_draft_ms"]
    share = model.head_parameters / (model.head_parameters + model.body_parameters)
    computed = {"step": step, "slope": 0.0, "alpha": acceptance_for(YAN[f"{draft}_tar"], k), "share": share}
    known = {"N": {"draft": YAN[f"{draft}_draft_ms"], "k": k}, "C": computed}
    return Work(f"Decoding Speculative Decoding: LLaMA-65B, {draft} draft", known, YAN[f"{draft}_rate"])


def _hispec(s: Setting) -> Work:
    """Costs in proportion to the layers and heads that are read."""
    model = shape("Llama-3-8B")
    low, high, layers = HISPEC["first_exit"], HISPEC["second_exit"], model.layers
    head = model.head_parameters * layers / model.body_parameters
    one, two = HISPEC["one_exit_accepted"], HISPEC["two_exits_accepted"]
    sizes = {"first": s.step * (low + head), "middle": s.step * (high - low + head)}
    sizes |= {"first_rest": layers - low + head, "whole_rest": layers - high + head}
    computed = {name: size / (layers + head) for name, size in sizes.items()} | {"middle_alpha": one / two}
    known = {"N": {"exits": 2, "first_alpha": one, "whole_alpha": two}, "C": computed}
    return Work("HiSpec: Llama-3-8B, two exits", known)
