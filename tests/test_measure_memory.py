"""A hierarchy over one model needs no memory of another model: every live tensor is counted, once."""

from __future__ import annotations

import pytest
import torch
from footprint import footprint, held, live_bytes
from toys import PROMPT, duo

from flashspec.decoding.cascade import decode
from flashspec.decoding.method import METHODS, Method, build
from flashspec.decoding.models import Models
from flashspec.decoding.state import Limits
from flashspec.models.synthetic import shape
from flashspec.models.transformer import Transformer

ALLOWED = 1.1
EXITS = {"reference-target": (2, 4), "qwen3-0.6b": (3, 7)}


def ghost(name: str, depth: int | None = None) -> Transformer:
    """A model of a published shape without memory, in bfloat16."""
    with torch.device("meta"):
        return Transformer(shape(name, depth)).to(torch.bfloat16).eval().requires_grad_(False)


def ratio(models: Models, method: Method) -> float:
    """Bytes of a method over those of plain decoding."""
    return footprint(build(method, models)).total / footprint(build(METHODS["baseline"], models)).total


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
def test_the_footprint_is_what_the_process_gained(name, dtype):
    """Models and their FlashHeads are alive before; a decode leaves nothing behind but the stages."""
    models = duo(0, dtype)
    warm = build(METHODS[name], models, context=64)
    list(decode(warm, PROMPT, Limits(12)))
    known = {t.untyped_storage()._cdata for t in held(models)}
    del warm
    before = live_bytes()
    stages = build(METHODS[name], models, context=64)
    list(decode(stages, PROMPT, Limits(12)))
    gained = live_bytes() - before
    fresh = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in held(stages)}
    assert gained == sum(size for storage, size in fresh.items() if storage not in known)
    found = footprint(stages)
    assert found.total + found.index == sum(fresh.values())


def test_the_parts_are_the_shapes():
    found = footprint(build(METHODS["hispec"], duo(0, torch.float32), context=64))
    config = duo(0, torch.float32).target.config
    assert found.cache == config.kv_bytes_per_token(4) * 64
    assert found.rows == 3 * 64 * config.hidden * 4
    assert found.index == 0 < footprint(build(METHODS["hispec_flash"], duo(0, torch.float32), context=64)).index
