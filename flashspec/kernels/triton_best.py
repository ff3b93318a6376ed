"""The best id of probed blocks on CUDA, in one Triton kernel: the logits of a block never leave the chip.

Imported where it is used, and only there: Triton compiles a function with the names of its module. A call can be
captured in a CUDA graph. Under TRITON_INTERPRET=1 it runs on the CPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

STEP = 128  # columns a program multiplies at once
LOWEST = -(1 << 63)


@triton.jit
def _best_of_blocks(states, blocks, ids, bias, chosen, packed, probes, cap, depth, CAP: tl.constexpr, STEP: tl.constexpr):  # type: ignore[no-untyped-def]
    """Program (row, probe) raises packed[row] to the highest (logit, -id) of one block."""
    row, probe = tl.program_id(0), tl.program_id(1)
    block = tl.load(chosen + row * probes + probe)
    slots = tl.arange(0, CAP)
    here = slots < cap
    logits = tl.zeros((CAP,), tl.float32)
    for start in range(0, depth, STEP):
        columns = start + tl.arange(0, STEP)
        inside = columns < depth
        x = tl.load(states + row * depth + columns, mask=inside, other=0.0).to(tl.float32)
        at = (block * cap + slots)[:, None] * depth + columns[None, :]
        w = tl.load(blocks + at, mask=here[:, None] & inside[None, :], other=0.0).to(tl.float32)
        logits += tl.sum(w * x[None, :], 1)
    logits += tl.load(bias + block * cap + slots, mask=here, other=float("-inf"))
    token = tl.load(ids + block * cap + slots, mask=here, other=0)
    bits = logits.to(tl.int32, bitcast=True)
    ordered = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.int64)
    tl.atomic_max(packed + row, tl.max((ordered << 32) | (0xFFFFFFFF - token), 0))


def best_of_blocks(states: Tensor, blocks: Tensor, ids: Tensor, bias: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """As flashspec.kernels.best_of_blocks, for tensors that are all contiguous and on one device."""
    (rows, probes), (_, cap, depth) = chosen.shape, blocks.shape
    packed = torch.full((rows,), LOWEST, dtype=torch.int64, device=states.device)
    with torch.cuda.device_of(states):
        _best_of_blocks[(rows, probes)](
            states.contiguous(), blocks, ids, bias, chosen.contiguous(), packed, probes, cap, depth,
            CAP=triton.next_power_of_2(cap), STEP=STEP,
        )  # fmt: skip
    high = (packed >> 32).to(torch.int32)
    bits = torch.where(high < 0, high ^ 0x7FFFFFFF, high)
    return 0xFFFFFFFF - (packed & 0xFFFFFFFF), bits.view(torch.float32)
