"""Compiled products equal their naive twins; a row has the same bits in any company and from every instruction set."""

import ctypes
import subprocess

import pytest
import torch
from shelf import ROOT, python, refused
from shelf import normal as noise
from torch.nn import functional as F

from flashspec import kernels
from flashspec.kernels import integers
from flashspec.kernels.build import FLAGS, ISAS, SOURCE, compiler, library, use_isa

pytestmark = pytest.mark.skipif(not kernels.available(), reason="no C compiler on this machine")
SHAPES = [(8, 1), (16, 7), (40, 33), (104, 8), (256, 130)]
CELLS = [(32, 16), (96, 48), (576, 33), (1536, 160), (40, 50), (33, 7), (12, 5)]
bits = pytest.mark.parametrize("bits", [8, 6, 4])


def error(found, wanted):
    return float((found - wanted).abs().max() / wanted.abs().max())


def row_invariant(product, x):
    """Whether each row of x gives bit for bit the same, alone and among the first n."""
    alone = torch.cat([product(x[i : i + 1]) for i in range(len(x))])
    return all(torch.equal(product(x[:n]), alone[:n]) for n in range(1, len(x) + 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
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
    assert not kernels.available() and max(map(error, fast, slow)) < 1e-5 < error(fast[2], fast[3])


def test_the_controls_a_wrong_weight_and_a_product_that_rounds_by_batch_are_caught():
    x, weight = noise(11, 64), noise(33, 64, seed=1)
    exact, spoiled = x.double() @ weight.double().T, weight.clone()
    spoiled[32, 63] += 1e-2
    assert error(kernels.linear(x, spoiled), exact) > 1e-5

    def by_batch(part):
        n = len(part)
        return part[:, :n] @ weight[:, :n].T + part[:, n:] @ weight[:, n:].T

    assert error(by_batch(x), exact) < 1e-5 and not row_invariant(by_batch, x)


def test_inputs_the_kernels_do_not_serve_are_computed_in_torch():
    odd, wide, single = noise(3, 12), noise(3, 16).double(), noise(3, 16)
    assert not kernels.serves(odd, odd) and torch.equal(kernels.linear(odd, odd), F.linear(odd, odd))
    assert kernels.linear(wide, wide).dtype is torch.float64
    turned = noise(16, 5, seed=3).T
    assert error(kernels.linear(single, turned), single.double() @ turned.double().T) < 1e-5
    assert error(kernels.linear(single.T.contiguous().T, noise(5, 16)), single.double() @ noise(5, 16).double().T) < 1e-5


@pytest.mark.parametrize("count", [1, 5, 256, 700, 4099])
def test_draws_invert_the_running_sum(count):
    logits = 4 * noise(400, count)
    logits[:, 1::3] = -torch.inf
    uniform = torch.rand(400, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    running = logits.double().softmax(-1).cumsum(-1)
    slow, other = (torch.searchsorted(running, u[:, None] * running[:, -1:], right=True)[:, 0] for u in (uniform, 1 - uniform))
    columns = kernels.draw(logits, uniform)
    assert torch.equal(columns, slow) and (count == 1 or not torch.equal(columns, other))  # other numbers, other columns


def test_a_draw_from_nothing_or_nan_is_refused_by_its_column():
    logits = noise(3, 40)
    logits[0], logits[1, 7] = -torch.inf, torch.nan
    columns = kernels.draw(logits, torch.full((3,), 0.5, dtype=torch.float64))
    assert columns[:2].tolist() == [-1, -1] and columns[2] >= 0
    assert kernels.draw(logits.double(), torch.zeros(3, dtype=torch.float64)) is None


def here():
    found = []
    for name in ISAS[:4]:  # tiles have their own test: they are used by name alone
        try:
            found.append(use_isa(library(), name))
        except ValueError:
            continue
    use_isa(library(), "")
    return found


def by(isa, x, weight):
    use_isa(library(), isa)
    try:
        return integers.packed_linear(x, weight)
    finally:
        use_isa(library(), "")


def meant(x, weight):
    return integers.rounded(x).double() @ weight.dequantised().double().T


@bits
@pytest.mark.parametrize(("depth", "outputs"), CELLS)
def test_every_instruction_set_gives_the_same_bits_for_any_number_of_rows(depth, outputs, bits):
    x, weight = noise(17, depth) * torch.logspace(-3, 2, 17)[:, None], kernels.pack(noise(outputs, depth, seed=1), bits)
    whole = by("generic", x, weight)
    assert error(whole, meant(x, weight)) < 2e-6
    for isa in here():
        for count in range(1, 17):
            assert torch.equal(by(isa, x[:count], weight), whole[:count])
            assert torch.equal(by(isa, x[17 - count :], weight), whole[17 - count :])


@bits
def test_the_largest_codes_of_both_signs_pass_no_sum(bits):
    x, ones = torch.ones(2, 64), torch.ones(16, 64)
    x[1], almost = -1, (-31 / 32 * ones).index_fill(1, torch.arange(0, 64, 16), 1.0)  # of six bits: codes 0 and 63
    for weight in (kernels.pack(each, bits) for each in (ones, -ones, almost, -almost)):
        for isa in here():
            assert error(by(isa, x, weight), meant(x, weight)) < 2e-6, isa


@bits
def test_what_is_no_number_stays_no_number(bits):
    x, weight = noise(4, 96), kernels.pack(noise(48, 96, seed=1), bits)
    wanted = [by(isa, x, weight) for isa in here()]
    x[1, 40], x[3, 90] = torch.nan, -torch.inf
    for isa, before in zip(here(), wanted, strict=True):
        found = by(isa, x, weight)
        assert found.isnan()[[1, 3]].all() and torch.equal(found[[0, 2]], before[[0, 2]])


@bits
def test_the_control_products_of_unrounded_rows_or_turned_codes_are_told_apart(bits):
    x, weight = noise(5, 96), kernels.pack(noise(48, 96, seed=1), bits)
    found = integers.packed_linear(x, weight)
    assert error(found, meant(x, weight)) < 2e-6 < error(found, x.double() @ weight.dequantised().double().T)
    turned = kernels.Packed(weight.cells.flip(1), weight.kind, *weight.shape)
    assert error(integers.packed_linear(x, turned), meant(x, weight)) > 0.1


@bits
def test_codes_are_the_nearest_of_their_groups(bits):
    weight = noise(9, 384, seed=1)
    weight[3] = 0.0
    packed = kernels.pack(weight, bits)
    width = integers.CELL if bits == 4 else integers.HALF
    groups = weight.unflatten(1, (-1, width))
    span = groups.amax(2).clamp(min=0) - groups.amin(2).clamp(max=0) if bits == 4 else 2 * groups.abs().amax(2)
    step = (span / (2**bits - (bits == 4))).repeat_interleave(width, 1)
    wrong = (packed.dequantised() - weight).abs() / step.clamp(min=1e-9)
    assert packed.shape == (9, 384) and (packed.dequantised()[3] == 0).all()
    assert float(wrong.max()) <= 1.1  # the level opposite to the extreme one is cut off
    assert float((wrong > 0.5 + 2e-2 * 2 ** (bits - 4)).float().mean()) < 0.03
    assert packed.nbytes == 16 * (384 * bits // 8 + 384 // 32 * 4)  # half-precision numbers, whole panels


@bits
def test_what_was_packed_is_unpacked_and_cut_where_it_lies(bits):
    weight = kernels.pack(noise(50, 40, seed=1), bits)
    codes, first, second = integers.unpacked(weight)
    again = integers.packed(codes[:50, :40], first[:50], second[:50], weight.kind)
    assert torch.equal(again.cells, weight.cells)
    assert torch.equal(weight[16:40].dequantised(), weight.dequantised()[16:40])
    refused("multiples of 16", lambda: weight[8:40])


@bits
def test_rows_are_taken_in_the_same_codes_and_none_beside_a_panel(bits, monkeypatch):
    weight, ids = kernels.pack(noise(50, 40, seed=1), bits), torch.randint(50, (64,), generator=torch.Generator().manual_seed(2))
    taken = weight.taken(ids)
    assert (taken.shape, taken.kind) == ((64, 40), weight.kind) and torch.equal(taken.dequantised(), weight.rows_of(ids))
    assert not torch.equal(taken.dequantised(), weight.rows_of(ids.flip(0)))
    refused("a multiple of 16 ids, got 50", weight.taken, torch.arange(50))
    monkeypatch.setattr(integers, "library", lambda: None)
    assert torch.equal(weight.taken(ids).cells, taken.cells)


def test_an_instruction_set_is_forced_and_one_that_is_not_here_is_refused():
    script = "from flashspec import kernels; kernels.available(); print(kernels.identity()['isa'])"
    generic, best, none = (python("-c", script, FLASHSPEC_ISA=name) for name in ("generic", "", "mmx"))
    assert (generic.stdout, best.stdout) == ("generic\n", f"{here()[0]}\n")
    assert "FLASHSPEC_ISA=mmx is no instruction set of this machine; it has" in none.stderr


@bits
def test_the_tile_kernel_gives_the_same_bits_on_a_twin_of_the_instructions(bits, tmp_path_factory):
    if here()[0] != "avx512vnni":
        pytest.skip("the tile kernel adds up with AVX512")
    twin = tiles(tmp_path_factory.getbasetemp())
    weight = kernels.pack(noise(50, 336, seed=1), bits)
    for rows in range(1, 17):
        x, out = noise(rows, 336), torch.empty(rows, 50)
        numbers = [ctypes.c_int64(n) for n in (rows, integers.KINDS[weight.kind], 50, 336)]
        places = [ctypes.c_void_p(t.data_ptr()) for t in (x, weight.cells, out)]
        twin.fs_linear(places[0], numbers[0], places[1], *numbers[1:], places[2])
        assert torch.equal(out, integers.packed_linear(x, weight))
    assert not torch.equal(out, integers.packed_linear(x.flip(0), weight))


def tiles(folder):
    """The kernels compiled against tests/tiles_twin.h, on their tile products."""
    made = folder / "tiles.so"
    if not made.exists():
        command = [compiler(), *FLAGS, f'-DTILES_TWIN="{ROOT / "tests" / "tiles_twin.h"}"', str(SOURCE), "-o", str(made), "-lm"]
        subprocess.run(command, check=True, capture_output=True)
    twin = ctypes.CDLL(str(made))
    twin.fs_isa.restype = ctypes.c_int64
    assert twin.fs_isa(ctypes.c_int64(ISAS.index("amx"))) == ISAS.index("amx")
    return twin
