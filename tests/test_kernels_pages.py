"""Weights lie behind one another on huge pages, are what they were, and live as long as somebody holds them."""

import gc
import mmap
from pathlib import Path

import pytest
import torch

import flashspec as fs
from flashspec.kernels.pages import ALIGNMENT, BLOCK, PAGE, Shelf

HUGE = hasattr(mmap, "MADV_HUGEPAGE")
GIVEN = HUGE and Path("/proc/self/smaps").exists() and Path("/sys/kernel/mm/transparent_hugepage").exists()
SHAPES = [((3, 5), torch.float32), ((7,), torch.int8), ((2, 3, 4), torch.bfloat16), ((), torch.int64)]
needs_huge = pytest.mark.skipif(not HUGE, reason="this system has no madvise(MADV_HUGEPAGE)")


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


@needs_huge
def test_a_tensor_that_does_not_fit_begins_a_block_of_its_own():
    shelf = Shelf()
    shelf.zeros((1,), torch.float32)
    large = shelf.zeros((BLOCK + 1,), torch.int8)
    assert large.data_ptr() % PAGE == 0
    large[-1] = 1
    assert shelf.zeros((PAGE - 1 - ALIGNMENT,), torch.int8).data_ptr() > large.data_ptr() + BLOCK


def test_a_copy_is_contiguous_follows_its_source_no_longer_and_outlives_its_shelf():
    source = torch.arange(1 << 20).view(1 << 10, -1)
    kept = [Shelf().moved(source.T) for _ in range(3)]
    before = source.T.clone()
    source += 1
    gc.collect()
    assert all(copy.is_contiguous() and torch.equal(copy, before) for copy in kept)


class Refusing(mmap.mmap):
    def madvise(self, *_):
        raise OSError(22, "Invalid argument")


@pytest.mark.parametrize("without", ["the request", pytest.param("the kernel's consent", marks=needs_huge)])
def test_without_huge_pages_tensors_lie_in_ordinary_memory(monkeypatch, without):
    if without == "the request":
        monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
    else:
        monkeypatch.setattr(mmap, "mmap", Refusing)
    assert torch.equal(Shelf().moved(torch.arange(5)), torch.arange(5))


def test_what_holds_nothing_or_lies_elsewhere_is_no_matter_for_the_shelf():
    shelf, elsewhere = Shelf(), torch.empty(3, device="meta")
    assert shelf.zeros((0, 3), torch.float32).shape == (0, 3)
    assert shelf.moved(elsewhere) is elsewhere and shelf.zeros((2,), torch.int8, "meta").device.type == "meta"


@pytest.mark.skipif(not GIVEN, reason="needs Linux's account of pages, and a kernel that has huge ones")
def test_a_loaded_model_asks_for_huge_pages():
    weight = fs.load(draft=None).target.blocks[0].mlp.down.weight.cells
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
