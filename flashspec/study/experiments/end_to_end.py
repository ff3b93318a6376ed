"""End to end on real models: plain decoding, dense drafts and FlashHead drafts, eager and deferred, timed in turns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, NamedTuple

from flashspec.decoding.method import METHODS, build
from flashspec.decoding.models import Models
from flashspec.heads.registry import HEADS
from flashspec.measure import clock
from flashspec.measure.bench import Text, text_digest
from flashspec.measure.certificate import Certificate, certify, target_scorer
from flashspec.measure.contest import Entry, Record, Turns, contest, joined_by_kind, texts
from flashspec.measure.overhead import loop_overhead
from flashspec.measure.parts import Bench, Parts, measure_parts, prepare
from flashspec.measure.prompts import Prompt, first_of_each_kind, load_prompts
from flashspec.scores import Sampling
from flashspec.study.experiment import Experiment
from flashspec.study.pairs import among, at_least, drafting, folders, models_of, samplings
from flashspec.study.rows import COUNTS, Compared, Counted, Timed, Turn

BASELINE = "baseline"


@dataclass(frozen=True)
class Params(Timed):
    """What to run. A draft is "main", "shallow" or a checkpoint folder; an empty `prompts` means the shipped file."""

    drafts: tuple[str, ...] = ("main", "shallow")  # draft models: shipped names or folders
    methods: tuple[str, ...] = ("dense", "int8", "flash")  # heads of the draft; plain decoding always runs beside them
    finalizes: tuple[str, ...] = ("eager", "deferred")  # when the target reads its own final token
    ks: tuple[int, ...] = (1, 2, 3)  # drafted tokens a check
    probes: tuple[int, ...] = (32, 64)  # clusters that FlashHead scores
    per_kind: int = 2  # prompts of each kind
    new_tokens: int = 192  # tokens emitted a prompt, whatever the stop tokens
    repeats: int = 3  # kept turns

    def __post_init__(self) -> None:
        super().__post_init__()
        among("methods", self.methods, HEADS)
        at_least(self, ks=1, probes=1)
        for finalize in self.finalizes:
            drafting("dense", finalize=finalize)


@dataclass(frozen=True)
class Drafting:
    """What drafted, and under which sampling."""

    draft: str
    method: str
    finalize: str
    temperature: float
    rule: str
    k: int
    probes: int


@dataclass(frozen=True)
class Row(Compared, Turn, Counted, Drafting):
    """One entry on the prompts of one kind in one turn; parts are those measured in the same turn.

    `twin_digest` is the text of the float32 twin on the kind's first prompt ("" where none was run).
    """

    draft_seconds: float
    check_seconds: float
    step_seconds: float
    prefill_seconds: float
    overhead_seconds: float


class Setting(NamedTuple):
    """One draft under one sampling: everything that shares a contest."""

    draft: str
    sampling: Sampling
    models: Models
    entries: dict[str, Entry]
    prompts: list[Prompt]


Key = tuple[str, str]


def settings(params: Params) -> list[tuple[str, Sampling]]:
    """Drafts and samplings to run."""
    return list(product(params.drafts, samplings(params.temperatures, params.rules, params.seed)))


def entries_of(params: Params, sampling: Sampling) -> dict[str, Entry]:
    """Plain decoding and every drafting method by name; under speculative sampling deferred finalisation only."""
    finalizes = [f for f in params.finalizes if sampling.rule == "coupling" or f == params.finalizes[-1]]
    found = {BASELINE: Entry(BASELINE, METHODS[BASELINE], sampling)}
    for name, finalize, k in product(params.methods, finalizes, params.ks):
        for method in dict.fromkeys(drafting(name, probes, k=k, finalize=finalize) for probes in params.probes):
            label = f"{name} {finalize} {k} {method.probes or 0}"
            found[label] = Entry(label, method, sampling)
    return found


def measure(params: Params) -> Iterator[Row]:
    """Decode real text with and without a draft, heads and finalisations in turns, with parts, twins and certificates."""
    for draft, sampling in settings(params):
        models = models_of(params.target, draft, params.dtype, params.weights)
        prompts = load_prompts(params.prompts or None, params.per_kind, models)
        setting = Setting(draft, sampling, models, entries_of(params, sampling), prompts)
        yield from rows_of(setting, params)


def rows_of(setting: Setting, params: Params) -> Iterator[Row]:
    """Run one contest and lay it out as rows."""
    records, parts = run_contest(setting, params)
    twins = twin_digests(setting, params)
    certificates = divergences(setting, records)
    for record in joined_by_kind(records):
        key = (record.entry, record.kind)
        found = {"twin_digest": twins.get(key, ""), **evidence(certificates.get(key))}
        yield _row(setting, record, found, parts[record.entry, record.repeat])


def run_contest(setting: Setting, params: Params) -> tuple[list[Record], dict[tuple[str, int], Parts]]:
    """All timed decodes, and the parts of every entry measured in the same turns."""
    benches = {name: bench_of(setting, entry, params) for name, entry in setting.entries.items()}
    records: list[Record] = []
    parts: dict[tuple[str, int], Parts] = {}
    for turn in _bar(range(params.repeats), f"end to end, {setting.draft}, T={setting.sampling.temperature}"):
        turns = Turns(params.new_tokens, 1, warmup=0 if turn else 1)
        found = contest(setting.models, list(setting.entries.values()), setting.prompts, turns)
        records += [record._replace(repeat=turn) for record in found]
        parts |= {(name, turn): parts_of(setting.entries[name], bench) for name, bench in benches.items()}
    return records, parts


def parts_of(entry: Entry, bench: Bench) -> Parts:
    """All parts of an entry, measured now."""
    parts = measure_parts(bench, clock.Plan(15, 3), entry.method.finalize == "eager")
    return parts._replace(overhead=loop_overhead(len(bench.stages)))


def bench_of(setting: Setting, entry: Entry, params: Params) -> Bench:
    """The parts of an entry, standing in the middle of the text it will write."""
    prompt = setting.prompts[0]
    text = texts(setting.models, setting.entries[BASELINE], [prompt], params.new_tokens)[0][: params.new_tokens // 2]
    context = len(prompt.ids) + params.new_tokens + entry.method.k
    return prepare(lambda: build(entry.method, setting.models, entry.sampling, context), prompt.ids, text)


def twin_digests(setting: Setting, params: Params) -> dict[Key, str]:
    """Text digests in float32, on the first prompt of each kind, of plain decoding and every method at the first k."""
    if setting.sampling.rule != "coupling":
        return {}
    models = models_of(params.target, setting.draft, "float32", "dense")
    wanted = [e for e in setting.entries.values() if e.name == BASELINE or e.method.k == params.ks[0]]
    digests: dict[Key, str] = {}
    for entry, prompt in _bar(list(product(wanted, first_of_each_kind(setting.prompts, 1))), "float32 twins"):
        digests[entry.name, prompt.kind] = text_digest(texts(models, entry, [prompt], params.new_tokens)[0])
    return digests


def divergences(setting: Setting, records: list[Record]) -> dict[Key, Certificate]:
    """A certificate for the first text of each entry and kind that is not plain decoding's; other rules owe no text."""
    if setting.sampling.rule != "coupling":
        return {}
    plain: dict[int, Text] = {}
    found: dict[Key, Certificate] = {}
    scorer = target_scorer(setting.models.target, setting.sampling)
    for record, number in _numbered(records, len(setting.prompts)):
        plain.setdefault(number, record.tokens)
        key = (record.entry, record.kind)
        if key not in found and record.tokens != plain[number]:
            certificate = certify(plain[number], record.tokens, setting.prompts[number].ids, scorer)
            found |= {key: replace(certificate, dtype="timed")} if certificate else {}
    return found


def _numbered(records: list[Record], prompts: int) -> Iterator[tuple[Record, int]]:
    """Records with the number of their prompt; a turn lists every entry for the first prompt, then for the next."""
    per_turn = len([r for r in records if r.repeat == 0])
    entries = per_turn // prompts
    for place, record in enumerate(records):
        yield record, place % per_turn // entries


def evidence(certificate: Certificate | None) -> dict[str, Any]:
    """The divergence columns."""
    if certificate is None:
        return {"divergence_at": None, "gap": None, "noise": None}
    return {"divergence_at": certificate.position, "gap": certificate.gap, "noise": certificate.noise}


def _row(setting: Setting, record: Record, found: dict[str, Any], parts: Parts) -> Row:
    method = setting.entries[record.entry].method
    plain = record.entry == BASELINE
    counted = vars(record.stats) | vars(record.score)
    return Row(
        draft=setting.draft,
        method=record.entry.split()[0],
        finalize="deferred" if plain else method.finalize,
        temperature=setting.sampling.temperature,
        rule=setting.sampling.rule,
        k=0 if plain else method.k,
        probes=method.probes or 0,
        kind=record.kind,
        prompts=sum(prompt.kind == record.kind for prompt in setting.prompts),
        seconds=record.seconds,
        repeat=record.repeat,
        text_digest=text_digest(record.tokens),
        **{name: counted[name] for name in COUNTS},
        **found,
        **{f"{name}_seconds": value for name, value in parts._asdict().items()},
    )


def _bar(work: Iterable, title: str) -> Iterable:
    from tqdm import tqdm

    return tqdm(work, desc=title, delay=2, leave=False)


def points(params: Params) -> list[Params]:
    """One point a draft, temperature and rule, so that a killed run continues with the next."""
    return [replace(params, drafts=(draft,), temperatures=(s.temperature,), rules=(s.rule,)) for draft, s in settings(params)]


SMOKE = Params(drafts=("main",), methods=("dense", "flash"), temperatures=(0.0,), ks=(2,), probes=(64,), new_tokens=8, repeats=1)
INT4 = Params(
    drafts=("main",), methods=("dense",), finalizes=("deferred",), temperatures=(1.0,), rules=("coupling",), ks=(1, 2),
    probes=(64,), weights="int4",
)  # fmt: skip
PRESETS = {"smoke": SMOKE, "int4": INT4}
EXPERIMENT = Experiment("end_to_end", Params, Row, measure, split=points, models=folders, presets=PRESETS)
