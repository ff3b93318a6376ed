"""A draft against other targets than its own: a fine-tuned variant, and whatever checkpoints the user names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flashspec.decoding.models import folder_of, load
from flashspec.measure.contest import Turns
from flashspec.measure.prompts import load_prompts
from flashspec.measure.trace import target_digest
from flashspec.provenance import short_hash
from flashspec.study import trials
from flashspec.study.drafts import drafts_of, pair_of, short_name, target_of
from flashspec.study.experiment import Experiment
from flashspec.study.pairs import by_temperature, samplings
from flashspec.study.rows import Raced
from flashspec.study.trials import Trial
from flashspec.train import corpus
from flashspec.train.design import encoded
from flashspec.train.tune import Tuning, docstrings, tuned

VARIANT = "fine-tuned"


@dataclass(frozen=True)
class Params(Raced):
    """Which targets to try. Without `targets`, a variant of the home target is fine-tuned on docstrings, which takes minutes."""

    target: str = "reference"  # the home target, whose drafts these are: shipped name or folder
    targets: tuple[str, ...] = ()  # other targets of the same tokenizer: folders
    ks: tuple[int, ...] = (1, 2, 3, 4, 6)  # drafted tokens a check
    per_kind: int = 2  # prompts of each kind
    steps: int = 100  # training steps of the variant
    seed: int = 2  # of the variant's training, and of sampling
    work: str = "runs/variants"  # where the variant is trained and kept

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.tuning

    @property
    def tuning(self) -> Tuning:
        """How the variant is made."""
        return Tuning(steps=self.steps, decay=self.steps // 2, seed=self.seed)


def variant_folder(params: Params) -> Path:
    """Where the fine-tuned variant of this target and tuning is, or will be."""
    facts = {"target": target_digest(folder_of(params.target, "target")), "tuning": asdict(params.tuning)}
    return Path(params.work) / f"{VARIANT}-{short_hash(facts)}"


def variant(params: Params) -> Path:
    """The fine-tuned variant of the home target: made once, on the docstrings of the standard library's training files."""
    folder = variant_folder(params)
    if not (folder / "digests.json").exists():
        home = load(params.target, None, "float32", "cpu", "dense")
        stream = encoded(home.tokenizer, docstrings(corpus.texts(corpus.split(corpus.library_root())[0])))
        tuned(home.target, home.folders["target"], stream, folder, params.tuning)
    return folder


def names_of(params: Params) -> dict[str, str]:
    """Targets by the name that the table uses, the home target first."""
    others = {Path(name).name: name for name in params.targets} or {VARIANT: str(variant(params))}
    return {short_name(params.target): params.target, **others}


def measure(params: Params) -> Iterator[Trial]:
    """Race the same drafts against their home target and against each other target, one target after the other."""
    prompts = load_prompts(params.prompts or None, params.per_kind)
    for label, name in names_of(params).items():
        alone = target_of(name, params.dtype, "dense")
        pairs = [pair_of(draft, folder, alone, label) for draft, folder in drafts_of(params.drafts).items()]
        for sampling in samplings(params.temperatures, (params.rule,), params.seed):
            racing = [c for pair in pairs for c in trials.speculating(pair, sampling, [("dense", None)], params.ks)]
            field = [trials.baseline(pairs[0], sampling), *racing]
            records = trials.pooled(trials.race(field, prompts, Turns(params.new_tokens, params.repeats, 1)))
            yield from trials.laid_out(records, field, trials.prompt_counts(prompts), "")


def digested(params: Params) -> Mapping[str, Path]:
    """Checkpoint folders whose digests enter the origin."""
    targets: dict[str, Any] = {label: folder_of(name, "target") for label, name in names_of(params).items()}
    return targets | drafts_of(params.drafts)


SMOKE = Params(drafts=("shallow",), ks=(2,), temperatures=(0.0,), per_kind=1, new_tokens=8, repeats=1, steps=1, work="runs/smoke")
EXPERIMENT = Experiment(
    "draft_generalises", Params, Trial, measure, split=by_temperature, models=digested, presets={"smoke": SMOKE}
)
