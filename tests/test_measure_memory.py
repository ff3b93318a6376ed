"""A hierarchy over one model needs no memory of another model: every live tensor is counted, once."""

import gc
from collections.abc import Mapping
from types import FunctionType, MethodType

import pytest
import torch
from torch import Tensor
from toys import PROMPT, duo

from flashspec import METHODS, FlashHead, Limits, Method, Models, Transformer, build, decode
from flashspec.models.synthetic import shape

ALLOWED = 1.1
EXITS = {"reference-target": (2, 4), "qwen3-0.6b": (3, 7)}


def storages(tensors):
    return {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}


def held(value, seen=None):
    """Tensors that a value reaches through attributes, containers, closures and bound methods."""
    seen = {} if seen is None else seen
    if id(value) in seen or isinstance(value, (type, str, bytes, int, float)):
        return
    seen[id(value)] = value
    if isinstance(value, Tensor):
        yield value
    for part in parts(value):
        yield from held(part, seen)


def parts(value):
    if isinstance(value, Mapping):
        return list(value.values())
    if isinstance(value, (list, tuple, set, frozenset)):
        return list(value)
    if isinstance(value, FunctionType):
        return [cell.cell_contents for cell in value.__closure__ or ()]
    return [value.__self__] if isinstance(value, MethodType) else list(getattr(value, "__dict__", {}).values())


def live():
    gc.collect()
    return storages(found for found in gc.get_objects() if issubclass(type(found), Tensor))


def ghost(name, depth=None):
    """A model of a published shape without memory, in bfloat16."""
    with torch.device("meta"):
        return Transformer(shape(name, depth)).to(torch.bfloat16).eval().requires_grad_(False)


def ratio(models, method):
    totals = []
    for wanted in (method, METHODS["baseline"]):
        stages = build(wanted, models)
        index = [(s.head.table, s.head.clusters) for s in stages if isinstance(s.head, FlashHead)]
        totals.append(sum(storages(held(stages)).values()) - sum(storages(held(index)).values()))
    return totals[0] / totals[1]


@pytest.mark.parametrize("name", EXITS)
def test_a_hierarchy_needs_at_most_a_tenth_more(name):
    models = Models(ghost(name))
    assert 1.0 <= ratio(models, Method(exits=EXITS[name], k=2)) <= ALLOWED
    assert 1.0 <= ratio(models, Method(exits=EXITS[name][:1])) <= ALLOWED


def test_the_control_a_second_model_and_caches_without_reuse_are_seen():
    models = Models(ghost("reference-target"), ghost("reference-target", 4))
    assert ratio(models, METHODS["dense"]) > ALLOWED
    alone, shared = (ratio(models, Method(exits=(2, 4), reuse=reuse)) for reuse in (False, True))
    assert alone > shared


@pytest.mark.parametrize("name", ["baseline", "hispec", "hispec_flash", "self_speculation", "flash", "lookup"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_stages_hold_is_what_the_process_gained(name, dtype):
    """Models and their FlashHeads are alive before; a decode leaves nothing behind but the stages."""
    models = duo(0, dtype)
    list(decode(build(METHODS[name], models, context=64), PROMPT, Limits(12)))
    known, before = storages(held(models)), live()
    stages = build(METHODS[name], models, context=64)
    list(decode(stages, PROMPT, Limits(12)))
    gained, fresh = sum(live().values()) - sum(before.values()), storages(held(stages))
    assert gained == sum(size for storage, size in fresh.items() if storage not in known)
    config, readers = models.target.config, {"hispec": 3, "self_speculation": 2, "baseline": 1}
    if name in readers and dtype is torch.float32:
        rows, cache = readers[name] * 64 * config.hidden * 4, config.kv_bytes_per_token(4) * 64
        assert rows + cache <= gained
