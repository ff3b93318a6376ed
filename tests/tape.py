"""A CUDA graph's stand-in on the CPU: the operations of one call, recorded once and repeated on the tensors they ran on.

Like a graph it repeats no Python, refuses what would wait for the device or copy from the host, and keeps nothing alive but
what the call itself made: a replay that reads a tensor which has gone in the meantime fails.
"""

import weakref

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

WAITS = {
    "item", "_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "equal", "bincount", "_unique2", "lift_fresh",
    "argwhere", "unique_consecutive",
}  # fmt: skip


class Tape(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.steps = []
        self.made = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = (args, kwargs or {})
        waits = func.overloadpacket.__name__ in WAITS or (func.overloadpacket.__name__ == "index" and _masked(args))
        assert not waits, f"{func} waits for the device or reads the host while a graph is recorded"
        result = func(*args, **given[1])
        self.steps.append((func, tree_map_only(Tensor, weakref.ref, given), result))
        self.made |= {id(t): t for t in tree_leaves(result) if isinstance(t, Tensor) and not _among(t, tree_leaves(given))}
        return result

    def replay(self):
        for func, given, result in self.steps:
            args, kwargs = tree_map_only(weakref.ref, _alive, given)
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if isinstance(old, Tensor) and id(old) in self.made and not _shared(old, tree_leaves((args, kwargs))):
                    old.copy_(new)


def _alive(held):
    tensor = held()
    assert tensor is not None, "a replay reads memory that was given back"
    return tensor


def _among(tensor, others):
    return any(tensor is other for other in others)


def _shared(tensor, others):
    place = tensor.untyped_storage().data_ptr()
    return any(isinstance(other, Tensor) and other.untyped_storage().data_ptr() == place for other in others)


def _masked(args):
    return any(isinstance(t, Tensor) and t.dtype is torch.bool for t in tree_leaves(args[1]))


def taped(call, device):
    for _ in range(2):
        call()
    tape = Tape()
    with tape:
        result = call()
    return tape, result
