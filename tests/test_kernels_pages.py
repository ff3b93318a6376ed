"""Weights lie behind one another on huge pages, are what they were, and live as long as somebody holds them."""

import gc
import mmap
from pathlib import Path

import pytest
import torch

import flashspec as fs
from flashspec.kernels.packed import pack
from flashspec.kernels.pages import ALIGNMENT, BLOCK, PAGE, Shelf

HUGE = hasattr(mmap, "MADV_HUGEPAGE")
SHAPES = [((3, 5), torch.float32), ((7,), torch.int8), ((2, 3, 4), torch.bfloat16), ((1,), torch.int64)]


def test_tensors_are_zeros_of_their_own_behind_one_another():
    shelf = Shelf()
    made = [shelf.zeros(shape, dtype) for shape, dtype in SHAPES]
    for number, tensor in enumerate(made):
        assert not tensor.any()
        tensor.fill_(number + 1)
    for number, (tensor, (shape, dtype)) in enumerate(zip(made, SHAPES, strict=True)):
        assert tensor.shape == shape and tensor.dtype is dtype and (tensor == number + 1).all()
    if HUGE:
        starts = [tensor.data_ptr() for tensor in made]
        assert starts == sorted(starts) and not any(start % ALIGNMENT for start in starts)
        assert starts[-1] - starts[0] < 4 * ALIGNMENT + sum(tensor.nbytes for tensor in made)


@pytest.mark.skipif(not HUGE, reason="this system has no madvise(MADV_HUGEPAGE)")
def test_a_tensor_that_does_not_fit_begins_a_block_of_its_own():
    shelf = Shelf()
    shelf.zeros((1,), torch.float32)
    large = shelf.zeros((BLOCK + 1,), torch.int8)
    assert large.data_ptr() % PAGE == 0
    large[-1] = 1
    assert shelf.zeros((PAGE - 1 - ALIGNMENT,), torch.int8).data_ptr() > large.data_ptr() + BLOCK


def test_a_tensor_outlives_its_shelf():
    def made():
        return Shelf().moved(torch.arange(1 << 20))

    kept = [made() for _ in range(3)]
    gc.collect()
    assert all(torch.equal(tensor, torch.arange(1 << 20)) for tensor in kept)


def test_nothing_is_moved_without_huge_pages(monkeypatch):
    monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
    assert torch.equal(Shelf().moved(torch.arange(5)), torch.arange(5)) and Shelf().zeros((0, 3), torch.float32).shape == (0, 3)


def test_packing_on_a_shelf_gives_the_same_integers():
    weight = torch.randn(40, 64)
    shelf = Shelf()
    one, other = pack(weight, 8), pack(weight, 8, shelf)
    assert torch.equal(one.values, other.values) and torch.equal(one.scales, other.scales)


@pytest.mark.skipif(not Path("/proc/self/smaps").exists() or not HUGE, reason="needs Linux's account of pages")
def test_a_loaded_model_asks_for_huge_pages():
    weight = fs.load(draft=None).target.blocks[0].mlp.down.weight
    assert asks(weight) and not asks(torch.zeros(1 << 22))


def asks(tensor):
    """Whether the memory that a tensor begins in has asked for huge pages (flag hg)."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        head = line.split()[0]
        if "-" in head and not head.endswith(":"):
            start, stop = (int(part, 16) for part in head.split("-"))
            inside = start <= tensor.data_ptr() < stop
        elif inside and head == "VmFlags:":
            return "hg" in line.split()
    return False
