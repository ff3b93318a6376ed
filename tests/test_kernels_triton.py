"""The fused stage 2 equals its CPU reference: under Triton's interpreter here, and on a GPU where there is one."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from flashspec import FlashHead, kernels

ROOT = Path(__file__).parents[1]
SHAPES = [(1, 4, 16, 32, 3), (5, 9, 8, 136, 4), (3, 6, 7, 24, 6)]  # rows, blocks, slots, width, probes
shapes = pytest.mark.parametrize(("rows", "blocks", "cap", "width", "probes"), SHAPES)


def case(rows, blocks, cap, width, probes):
    """States, blocks, ids, bias and chosen blocks; whole numbers, so that sums are exact and ties are many."""
    dice = torch.Generator().manual_seed(rows)
    states = torch.randint(-2, 3, (rows, width), generator=dice).float()
    weight = torch.randint(-1, 2, (blocks, cap, width), generator=dice).float()
    weight[-1] = weight[0]
    ids = torch.randperm(blocks * cap, generator=dice).view(blocks, cap)
    bias = torch.zeros(blocks, cap).masked_fill(torch.rand(blocks, cap, generator=dice) < 0.2, -torch.inf)
    chosen = torch.rand(rows, blocks, generator=dice).topk(probes).indices
    return states, weight, ids, bias, chosen


def naive(states, weight, ids, bias, chosen):
    found = []
    for row, numbers in zip(states, chosen.tolist(), strict=True):
        slots = [(float(weight[b, s] @ row + bias[b, s]), -int(ids[b, s])) for b in numbers for s in range(ids.shape[1])]
        logit, token = max(slots)
        found.append((-token, logit))
    return found


@shapes
def test_the_reference_is_the_naive_search(rows, blocks, cap, width, probes):
    parts = case(rows, blocks, cap, width, probes)
    token, logit = kernels.best_of_blocks(*parts)
    assert list(zip(token.tolist(), logit.tolist(), strict=True)) == naive(*parts)
    states, *others = parts
    tied = kernels.best_of_blocks(torch.zeros_like(states), *others)[0]
    assert tied.tolist() == [token for token, _ in naive(torch.zeros_like(states), *others)] != token.tolist()


INTERPRETED = """
import torch
from test_kernels_triton import SHAPES, case
from flashspec import kernels
from flashspec.kernels import triton_best
for shape in SHAPES:
    states, weight, ids, bias, chosen = case(*shape)
    expected = kernels.best_of_blocks(states, weight, ids, bias, chosen)
    for kind in (torch.float32, torch.bfloat16):
        token, logit = triton_best.best_of_blocks(states, weight.to(kind), ids, bias, chosen)
        print("same" if token.equal(expected[0]) and logit.equal(expected[1]) else f"other {shape} {kind}")
    token, _ = triton_best.best_of_blocks(states, -weight, ids, bias, chosen)
    print("other" if token.equal(expected[0]) else "turned")
"""


def test_the_triton_kernel_is_its_reference():
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed here")
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": paths}
    done = subprocess.run([sys.executable, "-c", INTERPRETED], env=environment, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.split() == ["same", "same", "turned"] * len(SHAPES), done.stderr[-2000:]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@shapes
def test_the_triton_kernel_on_a_gpu_is_its_reference_and_can_be_captured(rows, blocks, cap, width, probes):
    pytest.importorskip("triton", reason="triton is not installed here")
    parts = [part.cuda() for part in case(rows, blocks, cap, width, probes)]
    expected = kernels.best_of_blocks(*case(rows, blocks, cap, width, probes))
    graph, found = torch.cuda.CUDAGraph(), kernels.best_of_blocks(*parts)
    with torch.cuda.graph(graph):
        again, _ = kernels.best_of_blocks(*parts)
    graph.replay()
    assert all(mine.cpu().equal(exact) for mine, exact in zip((*found, again), (*expected, expected[0]), strict=True))


def test_a_head_that_names_its_best_id_names_the_best_of_those_it_scores():
    weight, rows = (torch.randn(n, 32, generator=torch.Generator().manual_seed(n)) for n in (300, 20))
    for changes in ({}, {"always": (3, 299), "cluster_size": 7}):
        head = FlashHead.build(weight, probes=3, **changes)
        scores, one = head(rows), head.with_plan(best=True)(rows)
        assert torch.equal(one.ids, scores.pick(scores.logits.argmax(1))[:, None])
        assert torch.equal(one.logits, scores.logits.amax(1, keepdim=True))
