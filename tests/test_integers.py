"""Integer products: the same bits from every instruction set, for any number of rows, and what the codes mean."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from shelf import normal as noise
from shelf import refused

from flashspec import kernels
from flashspec.kernels import integers
from flashspec.kernels.build import FLAGS, ISAS, SOURCE, compiler, library, use_isa

ROOT = Path(__file__).parents[1]
SHAPES = [(32, 16), (96, 48), (576, 33), (1536, 160), (40, 50), (33, 7), (12, 5)]
bits = pytest.mark.parametrize("bits", [8, 6, 4])
compiled = pytest.mark.skipif(library() is None, reason="no C compiler here")


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


def error(found, wanted):
    return float((found - wanted).abs().max() / wanted.abs().max())


@bits
@compiled
@pytest.mark.parametrize(("depth", "outputs"), SHAPES)
def test_every_instruction_set_gives_the_same_bits_for_any_number_of_rows(depth, outputs, bits):
    x, weight = noise(17, depth) * torch.logspace(-3, 2, 17)[:, None], kernels.pack(noise(outputs, depth, seed=1), bits)
    whole = by("generic", x, weight)
    assert error(whole, meant(x, weight)) < 2e-6
    for isa in here():
        for count in range(1, 17):
            assert torch.equal(by(isa, x[:count], weight), whole[:count])
            assert torch.equal(by(isa, x[17 - count :], weight), whole[17 - count :])


@bits
@compiled
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
    monkeypatch.setattr(integers, "SOME", 1)
    assert torch.equal(weight.taken(ids).cells, taken.cells)
    refused("a multiple of 16 ids, got 50", weight.taken, torch.arange(50))


@compiled
def test_an_instruction_set_is_forced_and_one_that_is_not_here_is_refused():
    script = "from flashspec import kernels; kernels.available(); print(kernels.identity()['isa'])"

    def said(name):
        environment = os.environ | {"FLASHSPEC_ISA": name}
        return subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, cwd=ROOT)

    assert said("generic").stdout.strip() == "generic"
    assert said("").stdout.strip() == here()[0]
    assert "FLASHSPEC_ISA=mmx is no instruction set of this machine; it has" in said("mmx").stderr


@compiled
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
