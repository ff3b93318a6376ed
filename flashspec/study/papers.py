"""Numbers printed in the three reproduced works, each with its place, so that no page types one."""

from __future__ import annotations

from typing import NamedTuple

from flashspec.models.synthetic import shape
from flashspec.theory import acceptance_for, implied_step, tokens_per_check
from flashspec.theory.decision import Setting

# Ma and Wang 2026, abstract: milliseconds, times, tokens a second
THESIS = {
    "projection_dense_ms": 2.493,
    "projection_flash_ms": 0.577,
    "projection": 4.321,
    "draft_step": 1.108,
    "eager_dense": 9.769,
    "eager_flash": 9.823,
    "eager": 1.006,
    "deferred_dense": 10.731,
    "deferred_flash": 11.374,
    "deferred": 1.060,
}
HISPEC_MOST = 2.01  # HiSpec at most; the abstract says over single-layer speculation, its notes say over plain decoding
HISPEC_OVER_PLAIN = 2.08  # HiSpec over plain decoding, at most; Kumar et al. 2025, reading note
HISPEC_QUARTER = 0.69  # of tokens are right at a quarter of the layers, at most; the same note
HISPEC_OVER_SELF = 1.28  # HiSpec over single-layer speculation, average; Kumar et al. 2025, abstract
YAN_HEADLINE = 1.60  # designed draft over an existing one, LLaMA-65B and OPT-66B; Yan et al. 2024, abstract
YAN_MOST = 2.11  # the same at most, all LLaMA models; abstract of the version at NAACL 2025, "up to 111 %"
YAN_EXPERIMENTS = 350  # runs; abstract
YAN_TUNED = 1.45  # designed draft against a fine-tuned target, Vicuna-33B; "up to 45 %"
LABELS = {
    "S": "Printed in the abstract",
    "N": "From a reading note of the paper",
    "C": "Computed from printed figures",
    "I": "Our reading of the abstract",
}
YAN = {"tar": 3.81, "draft_ms": 13.13, "rate": 23.10, "k": 8}  # LLaMA-65B with Sheared-LLaMA-1.3B; Yan et al. 2024, reading note
YAN_WIDE = {"tar": 3.70, "draft_ms": 6.69, "rate": 32.59, "k": 8}  # with NoFT-Wide-1.3B; the same note
HISPEC_EXITS = (3, 8)  # layers of Llama-3-8B's exits; Kumar et al. 2025, reading note
HISPEC_KEPT = {"one exit": 0.397, "two exits": 0.581}  # acceptance by the whole model; the same note


class Printed(NamedTuple):
    """One number of a decision that a work gives, and the label of its source."""

    value: float
    label: str


class Work(NamedTuple):
    """What a work gives of a decision, and the tokens a second that it prints for it, if any, with which draft head."""

    title: str
    known: dict[str, Printed]
    rate: float = float("nan")
    head: str = "dense"


def claims() -> dict[str, dict[str, Printed]]:
    """What the three works claim, by the key of each in the bibliography: ratios, a rank correlation and a share."""
    thesis = {name: Printed(THESIS[name], "S") for name in ("projection", "draft_step", "eager", "deferred")}
    late = {f"deferral_{head}": Printed(THESIS[f"deferred_{head}"] / THESIS[f"eager_{head}"], "C") for head in ("dense", "flash")}
    yan = {
        "designed": Printed(YAN_HEADLINE, "S"), "designed_most": Printed(YAN_MOST, "S"), "tuned": Printed(YAN_TUNED, "N"),
        "wide": Printed(YAN_WIDE["rate"] / YAN["rate"], "C"), "wide_step": Printed(YAN["draft_ms"] / YAN_WIDE["draft_ms"], "C"),
        "accuracy": Printed(0.0, "I"),
    }  # fmt: skip
    hispec = {"over_self": Printed(HISPEC_OVER_SELF, "S"), "over_self_most": Printed(HISPEC_MOST, "S")}
    hispec |= {"over_plain": Printed(HISPEC_OVER_PLAIN, "N"), "quarter": Printed(HISPEC_QUARTER, "N")}
    return {"thesis2026": {**thesis, **late}, "yan2024decoding": yan, "hispec2025": hispec}


def works(s: Setting) -> dict[str, Work]:
    """The three works as decisions, by a short name; what none prints is taken from a setting."""
    title = "Decoding Speculative Decoding: LLaMA-65B"
    return {
        "thesis": Work("Thesis: Qwen3-32B with Qwen3-0.6B", _thesis(s), THESIS["deferred_flash"], "flash"),
        "yan-deep": Work(f"{title}, deep draft", _yan(YAN, "Sheared-LLaMA-1.3B"), YAN["rate"]),
        "yan-wide": Work(f"{title}, wide draft", _yan(YAN_WIDE, "NoFT-Wide-1.3B"), YAN_WIDE["rate"]),
        "hispec": Work("HiSpec: Llama-3-8B, two exits", _hispec(s)),
    }


def _thesis(s: Setting) -> dict[str, Printed]:
    """The target's step is the one with which the dense draft and an eager final token are as fast as printed."""
    draft = implied_step(THESIS["projection_dense_ms"] - THESIS["projection_flash_ms"], THESIS["draft_step"])
    spent = 1e3 * tokens_per_check(s.alpha, s.k) / THESIS["eager_dense"] - s.k * draft
    step = spent / (1.0 + s.slope * (s.k - 1) + s.final)
    return {
        "gain": Printed(THESIS["projection"], "S"),
        **{name: Printed(value, "C") for name, value in (("draft", draft), ("share", head_share()), ("step", step))},
    }


def _yan(row: dict[str, float], name: str) -> dict[str, Printed]:
    """A check of eight rows takes what the deep draft's rate leaves, and as long as a step: one prefill-like pass."""
    step, model = 1e3 * YAN["tar"] / YAN["rate"] - YAN["k"] * YAN["draft_ms"], shape(name)
    share = model.head_parameters / (model.head_parameters + model.body_parameters)
    computed = {"step": step, "slope": 0.0, "alpha": acceptance_for(row["tar"], int(row["k"])), "share": share}
    known = {"draft": Printed(row["draft_ms"], "N"), "k": Printed(row["k"], "N")}
    return known | {name: Printed(value, "C") for name, value in computed.items()}


def _hispec(s: Setting) -> dict[str, Printed]:
    """Costs in proportion to the layers and heads that are read."""
    model = shape("Llama-3-8B")
    head = model.head_parameters * model.layers / model.body_parameters
    low, high = HISPEC_EXITS
    parts = {"first": low + head, "middle": high - low + head, "first_rest": model.layers - low + head}
    parts |= {"whole_rest": model.layers - high + head}
    unit = {"first": s.step, "middle": s.step}
    times = {name: size / (model.layers + head) * unit.get(name, 1.0) for name, size in parts.items()}
    one, two = HISPEC_KEPT["one exit"], HISPEC_KEPT["two exits"]
    known = {"exits": Printed(2, "N"), "first_alpha": Printed(one, "N"), "whole_alpha": Printed(two, "N")}
    return known | {name: Printed(value, "C") for name, value in {**times, "middle_alpha": one / two}.items()}


def head_share() -> float:
    """The head's share of the thesis's dense draft step, from the time saved and the step's speedup."""
    saved = THESIS["projection_dense_ms"] - THESIS["projection_flash_ms"]
    return THESIS["projection_dense_ms"] / implied_step(saved, THESIS["draft_step"])
