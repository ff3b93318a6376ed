"""A draft against other targets than its own: a fine-tuned variant, an independent one, and checkpoints that the user names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flashspec.decoding.models import folder_of, load
from flashspec.measure.contest import Turns
from flashspec.measure.prompts import load_prompts
from flashspec.measure.trace import target_digest
from flashspec.model.transformer import Transformer
from flashspec.provenance import short_hash
from flashspec.study import trials
from flashspec.study.drafts import drafts_of, pair_of, short_name, target_of
from flashspec.study.experiment import Experiment
from flashspec.study.pairs import at_least, by_temperature, samplings
from flashspec.study.rows import Raced
from flashspec.study.trials import Trial
from flashspec.train import corpus
from flashspec.train.design import encoded
from flashspec.train.target import initialise
from flashspec.train.tune import Tuning, docstrings, tuned

VARIANT, INDEPENDENT = "fine-tuned", "independent"


@dataclass(frozen=True)
class Params(Raced):
    """Which targets to try. Without `targets`, two are made in minutes: the home target fine-tuned on docstrings, and one of its
    shape from an independent seed, trained briefly on the same corpus."""

    target: str = "reference"  # the home target, whose drafts these are: shipped name or folder
    targets: tuple[str, ...] = ()  # other targets of the same tokenizer: folders
    ks: tuple[int, ...] = (1, 2, 3, 4)  # drafted tokens a check
    per_kind: int = 2  # prompts of each kind
    steps: int = 100  # training steps of the fine-tuned variant
    independent: int = 100  # training steps of the independently seeded target; 0 makes none
    seed: int = 2  # of both trainings, and of sampling
    work: str = "runs/variants"  # where they are trained and kept

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, independent=0)
        _ = self.tunings

    @property
    def tunings(self) -> dict[str, Tuning]:
        """How each variant is made."""
        found = {VARIANT: Tuning(self.steps, self.steps // 2, seed=self.seed)}
        if self.independent:
            found[INDEPENDENT] = Tuning(self.independent, self.independent // 2, muon_lr=0.02, adam_lr=3e-3, seed=self.seed)
        return found


def variant_folder(params: Params, name: str = VARIANT) -> Path:
    """Where the variant of this name, target and tuning is, or will be."""
    facts = {"target": target_digest(folder_of(params.target, "target")), "tuning": asdict(params.tunings[name])}
    return Path(params.work) / f"{name}-{short_hash(facts)}"


def variant(params: Params, name: str = VARIANT) -> Path:
    """A variant of the home target, made once: its weights tuned on docstrings, or fresh ones trained on the same corpus."""
    folder = variant_folder(params, name)
    if not (folder / "digests.json").exists():
        home = load(params.target, None, "float32", "cpu", "dense")
        texts = corpus.texts(corpus.split(corpus.library_root())[0])
        stream = encoded(home.tokenizer, docstrings(texts) if name == VARIANT else texts)
        start = home.target if name == VARIANT else fresh(home.target, params.seed)
        tuned(start, home.folders["target"], stream, folder, params.tunings[name])
    return folder


def fresh(target: Transformer, seed: int) -> Transformer:
    """A model of the target's shape that has read nothing."""
    model = Transformer(target.config)
    initialise(model, seed)
    return model


def names_of(params: Params) -> dict[str, str]:
    """Targets by the name that the table uses, the home target first."""
    others = {Path(name).name: name for name in params.targets} or {name: str(variant(params, name)) for name in params.tunings}
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


SMOKE = Params(
    drafts=("shallow",),
    ks=(2,),
    temperatures=(0.0,),
    per_kind=1,
    new_tokens=8,
    repeats=1,
    steps=1,
    independent=0,
    work="runs/smoke",
)
EXPERIMENT = Experiment(
    "draft_generalises", Params, Trial, measure, split=by_temperature, models=digested, presets={"smoke": SMOKE}
)
