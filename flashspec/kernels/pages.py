"""Memory for weights: tensors one after another on huge pages, for streaming.

Linux gives 2-megabyte pages to memory that asks for them; elsewhere this is ordinary memory. A block is freed with its
last tensor: share a shelf only between tensors that live and die together.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from contextlib import suppress
from math import prod

import torch
from torch import Tensor

PAGE = 1 << 21  # bytes of a huge page
BLOCK = 1 << 24  # bytes asked for at once; what is never written takes no memory
ALIGNMENT = 64  # a cache line


class Shelf:
    """Room for tensors on the CPU, in order of request; a block lives as long as any tensor in it."""

    def __init__(self) -> None:
        self._block: mmap.mmap | None = None
        self._next, self._end = 0, 0

    def zeros(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
        """Contiguous zeros [*shape] on the shelf; an ordinary tensor off the CPU and without huge pages."""
        size = prod(shape) * dtype.itemsize
        if torch.device(device).type != "cpu" or not size or not hasattr(mmap, "MADV_HUGEPAGE"):
            return torch.zeros(tuple(shape), dtype=dtype, device=device)
        start = -(-self._next // ALIGNMENT) * ALIGNMENT
        if self._block is None or start + size > self._end:  # another block, from its first huge page on
            room = max(BLOCK, -(-size // PAGE) * PAGE)
            block = mmap.mmap(-1, room + PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            with suppress(OSError):  # EINVAL of a kernel built without huge pages
                block.madvise(mmap.MADV_HUGEPAGE)
            start = -torch.frombuffer(block, dtype=torch.uint8, count=1).data_ptr() % PAGE
            self._block, self._end = block, start + room
        self._next = start + size
        return torch.frombuffer(self._block, dtype=dtype, count=prod(shape), offset=start).view(tuple(shape))

    def moved(self, tensor: Tensor) -> Tensor:
        """A contiguous copy of a tensor on the shelf; the tensor itself if it is on another device."""
        if tensor.device.type != "cpu":
            return tensor
        return self.zeros(tensor.shape, tensor.dtype).copy_(tensor)
