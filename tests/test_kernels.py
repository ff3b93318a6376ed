"""The compiled products equal their naive twins, and a row never depends on how many are computed with it."""

import pytest
import torch
from shelf import normal as noise
from torch.nn import functional as F

from flashspec import kernels

SHAPES = [(8, 1), (16, 7), (40, 33), (104, 8), (256, 130)]
pytestmark = pytest.mark.skipif(not kernels.available(), reason="no C compiler on this machine")
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


def close(mine, exact):
    return torch.allclose(mine.double(), exact.double(), rtol=1e-5, atol=1e-5 * float(exact.abs().max()))


def row_invariant(product, x):
    """Whether each row of x gives bit for bit the same, alone and among the first n."""
    alone = torch.cat([product(x[i : i + 1]) for i in range(len(x))])
    return all(torch.equal(product(x[:n]), alone[:n]) for n in range(1, len(x) + 1))


@dtypes
@pytest.mark.parametrize(("depth", "outputs"), SHAPES)
def test_products_and_norms_are_their_torch_twins_and_row_invariant(depth, outputs, dtype, monkeypatch):
    x, weight, blocks = noise(11, depth), noise(outputs, depth, dtype=dtype, seed=1), noise(9, 3, depth, dtype=dtype, seed=2)
    chosen, gain, bias = torch.randint(0, 9, (11, 5), generator=torch.Generator().manual_seed(2)), *noise(2, depth, seed=3)
    calls = [
        lambda part: kernels.linear(part, weight),
        lambda part: kernels.gather_linear(part, blocks, torch.full((len(part), 5), 4)),
        *(lambda part, more=more: kernels.Norm(gain, 1e-5, *more)(3 * part + 2) for more in ((), (bias,))),
    ]
    assert kernels.serves(x, weight) and all(row_invariant(call, x) for call in calls)
    fast = [*(call(x) for call in calls), kernels.gather_linear(x, blocks, chosen)]
    whole = kernels.linear(x, blocks.flatten(0, 1)).view(11, 9, 3)
    assert torch.equal(fast[-1], whole[torch.arange(11)[:, None], chosen]), "the same bits as in the whole product"
    monkeypatch.setattr("flashspec.kernels.library", lambda: None)
    slow = [*(call(x) for call in calls), kernels.gather_linear(x, blocks, chosen)]
    assert not kernels.available() and all(map(close, fast, slow)) and not close(fast[2], fast[3])


def test_the_controls_a_wrong_weight_and_a_product_that_rounds_by_batch_are_caught():
    x, weight = noise(11, 64), noise(33, 64, seed=1)
    exact, spoiled = x.double() @ weight.double().T, weight.clone()
    spoiled[32, 63] += 1e-2
    assert not close(kernels.linear(x, spoiled), exact)

    def by_batch(part):
        n = len(part)
        return part[:, :n] @ weight[:, :n].T + part[:, n:] @ weight[:, n:].T

    assert close(by_batch(x), exact) and not row_invariant(by_batch, x)


def test_inputs_the_kernels_do_not_serve_are_computed_in_torch():
    odd, wide, single = noise(3, 12), noise(3, 16).double(), noise(3, 16)
    assert not kernels.serves(odd, odd) and torch.equal(kernels.linear(odd, odd), F.linear(odd, odd))
    assert kernels.linear(wide, wide).dtype is torch.float64
    turned = noise(16, 5, seed=3).T
    assert close(kernels.linear(single, turned), single.double() @ turned.double().T)
    assert close(kernels.linear(single.T.contiguous().T, noise(5, 16)), single.double() @ noise(5, 16).double().T)


def slow_draw(logits, uniform):
    running = logits.double().softmax(-1).cumsum(-1)
    return torch.searchsorted(running, uniform[:, None] * running[:, -1:], right=True)[:, 0]


@pytest.mark.parametrize("count", [1, 5, 256, 700, 4099])
def test_draws_invert_the_running_sum(count):
    logits = 4 * noise(400, count)
    logits[:, 1::3] = -torch.inf
    uniform = torch.rand(400, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    columns = kernels.draw(logits, uniform)
    assert torch.equal(columns, slow_draw(logits, uniform))
    assert count == 1 or not torch.equal(columns, slow_draw(logits, 1 - uniform))  # the control: other numbers, other columns


def test_a_draw_from_nothing_or_nan_is_refused_by_its_column():
    logits = noise(3, 40)
    logits[0], logits[1, 7] = -torch.inf, torch.nan
    columns = kernels.draw(logits, torch.full((3,), 0.5, dtype=torch.float64))
    assert columns[:2].tolist() == [-1, -1] and columns[2] >= 0
    assert kernels.draw(logits.double(), torch.zeros(3, dtype=torch.float64)) is None
