"""AWQ's 4-bit layout: packing, dequantising, torch's int4 matmul, whole checkpoints, and the quantiser's own parts."""

from __future__ import annotations

import sys
from dataclasses import replace
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest
import torch
from test_transformer import BASE, prompt, randomised
from torch import Tensor

from flashspec.models import awq
from flashspec.models.awq import (
    Int4Linear,
    Quantised,
    Scheme,
    Stored,
    dequantise,
    fuse,
    pack,
    pack_weight,
    quantise,
    unpack,
    unpack_weight,
)
from flashspec.models.checkpoint import load_transformer
from flashspec.models.config import ModelConfig, to_hf
from flashspec.models.export import hf_tensors, write_folder
from flashspec.models.transformer import Transformer
from flashspec.train.quantize import best_clip, quantize_awq, quantize_gptq

SMALL = replace(BASE, hidden=128, ffn=256, heads=4, kv_heads=2, head_dim=32)
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def random_weight(inputs: int, outputs: int, group: int = 128, seed: int = 0) -> Quantised:
    dice = torch.Generator().manual_seed(seed)
    whole = torch.randint(0, 16, (inputs, outputs), generator=dice, dtype=torch.uint8)
    zeros = torch.randint(0, 16, (inputs // group, outputs), generator=dice, dtype=torch.uint8)
    scales = (torch.rand(inputs // group, outputs, generator=dice) * 0.02 + 0.001).half()
    return Quantised(whole, zeros, scales)


def naive_dense(packed: dict[str, Tensor], group: int) -> Tensor:
    """One number at a time, from the layout's definition."""
    inputs, outputs = packed["qweight"].shape[0], packed["scales"].shape[1]
    place = {column: nibble for nibble, column in enumerate((0, 2, 4, 6, 1, 3, 5, 7))}
    dense = torch.empty(outputs, inputs)
    for o in range(outputs):
        shift = 4 * place[o % 8]
        for i in range(inputs):
            whole = (int(packed["qweight"][i, o // 8]) >> shift) & 15
            zero = (int(packed["qzeros"][i // group, o // 8]) >> shift) & 15
            dense[o, i] = (whole - zero) * float(packed["scales"][i // group, o])
    return dense


def relative(a: Tensor, b: Tensor) -> float:
    return ((a.float() - b.float()).norm() / b.float().norm()).item()


def test_the_nibble_order_is_awqs() -> None:
    assert pack(torch.arange(8).view(1, 8)).item() == 0x75316420
    assert unpack(torch.tensor([[0x75316420]], dtype=torch.int32)).tolist() == [list(range(8))]


def test_packing_is_undone_by_unpacking() -> None:
    weight = random_weight(256, 48)
    packed = pack_weight(weight)
    assert packed["qweight"].dtype == torch.int32 and packed["qweight"].shape == (256, 6)
    again = unpack_weight(**packed)
    assert all(torch.equal(a, b) for a, b in zip(weight, again, strict=True))


def test_dequantising_equals_the_naive_twin() -> None:
    packed = pack_weight(random_weight(64, 16, group=32))
    assert torch.equal(dequantise(unpack_weight(**packed)), naive_dense(packed, 32))


def gemm_dequantised(packed: dict[str, Tensor], group: int) -> Tensor:
    """AutoAWQ's formula: shift out eight nibbles, put columns back by the reverse order, subtract zeros, scale."""
    order, shifts = torch.tensor([0, 4, 1, 5, 2, 6, 3, 7]), torch.arange(0, 32, 4)
    whole, zeros = (
        (packed[name].unsqueeze(-1) >> shifts & 15)[..., order].flatten(1).repeat_interleave(times, 0)
        for name, times in (("qweight", 1), ("qzeros", group))
    )
    return (whole - zeros) * packed["scales"].repeat_interleave(group, 0)


@pytest.mark.parametrize("group", [32, 64, 128])
def test_dequantising_equals_autoawqs_formula(group: int) -> None:
    packed = pack_weight(random_weight(256, 48, group))
    wanted = gemm_dequantised(packed, group)
    assert torch.equal(dequantise(unpack_weight(**packed), torch.float16).t(), wanted)


def autoawqs_packing() -> ModuleType:
    """AutoAWQ's packing_utils.py by itself: the package imports only with the transformers of its time."""
    found = find_spec("awq")
    if found is None or found.origin is None:
        pytest.skip("AutoAWQ is not installed here")
    place = Path(found.origin).parent / "utils" / "packing_utils.py"
    spec = spec_from_file_location("packing_utils", place)
    assert spec is not None and spec.loader is not None
    made = module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


@pytest.mark.parametrize("group", [32, 64, 128])
def test_the_formula_is_autoawqs_own(group: int) -> None:
    packing = autoawqs_packing()
    packed = pack_weight(random_weight(256, 48, group))
    wanted = gemm_dequantised(packed, group)
    assert torch.equal(packing.dequantize_gemm(packed["qweight"], packed["qzeros"], packed["scales"], 4, group), wanted)


def test_another_nibble_order_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = pack_weight(random_weight(64, 16, group=32))
    monkeypatch.setattr(awq, "ORDER", tuple(range(8)))
    assert relative(dequantise(unpack_weight(**packed)), naive_dense(packed, 32)) > 0.1


def test_rounding_is_off_by_at_most_half_a_step() -> None:
    weight = torch.randn(32, 256, generator=torch.Generator().manual_seed(0))
    quantised = quantise(weight)
    step = quantised.scales.float().repeat_interleave(128, 0).t()
    assert ((dequantise(quantised) - weight).abs() <= 1.01 * step).all()
    assert relative(dequantise(quantised), weight) < 0.12


@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("shape", [(128, 16), (384, 640), (1024, 384)])
def test_int4_matmul_equals_the_dense_product(shape: tuple[int, int], group: int) -> None:
    weight = random_weight(*shape, group)
    x = torch.randn(5, shape[0], generator=torch.Generator().manual_seed(1)).bfloat16()
    wanted = x.float() @ dequantise(weight).t()
    assert relative(Int4Linear(weight)(x), wanted) < 5e-3
    assert relative(Int4Linear(weight, dtype=torch.float32)(x.float()), wanted) < 1e-5


def test_another_zero_point_convention_is_caught() -> None:
    weight = random_weight(128, 16)
    x = torch.randn(5, 128, generator=torch.Generator().manual_seed(1)).bfloat16()
    shifted = weight._replace(zeros=(weight.zeros + 1) % 16)
    assert relative(Int4Linear(shifted)(x), x.float() @ dequantise(weight).t()) > 5e-2


def test_int4_rows_do_not_depend_on_their_neighbours() -> None:
    linear = Int4Linear(random_weight(384, 640))
    x = torch.randn(9, 384, generator=torch.Generator().manual_seed(1)).bfloat16()
    alone = torch.cat([linear(row) for row in x.split(1)])
    assert torch.equal(linear(x), alone)


def test_int4_bias_is_added_and_leading_dimensions_kept() -> None:
    weight, bias = random_weight(128, 16), torch.arange(16.0)
    x = torch.randn(2, 3, 128)
    plain, shifted = (Int4Linear(weight, b, torch.float32)(x) for b in (None, bias))
    assert shifted.shape == (2, 3, 16) and torch.allclose(shifted - plain, bias.expand(2, 3, 16), atol=1e-4)


@pytest.mark.parametrize("counts", [(640,), (128, 64, 448), (16, 8, 616)])
def test_a_weight_repacked_in_pieces_is_the_weight_repacked_at_once(
    counts: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = [random_weight(384, count, seed=count) for count in counts]
    stored = Stored([list(pack_weight(part).values()) for part in parts], torch.device("cpu"))
    whole = Int4Linear(fuse(parts))
    monkeypatch.setattr(awq, "BLOCK", 384 * 128)
    assert len(awq.blocks(640, 384)) == 5
    pieces = Int4Linear(stored)
    assert torch.equal(pieces.packed, whole.packed) and torch.equal(pieces.scales_and_zeros, whole.scales_and_zeros)
    monkeypatch.setattr(awq, "blocks", lambda rows, columns: [(0, 16), (16, rows)])
    assert not torch.equal(Int4Linear(stored).packed, whole.packed)


def test_fusing_stacks_output_rows() -> None:
    parts = [random_weight(128, outputs, seed=outputs) for outputs in (16, 8)]
    assert torch.equal(dequantise(fuse(parts)), torch.cat([dequantise(part) for part in parts]))


def test_a_shape_the_matmul_cannot_take_is_refused() -> None:
    with pytest.raises(ValueError, match="load with weights='dense'"):
        Int4Linear(random_weight(128, 24))


def write_awq(config: ModelConfig, folder: Path, skipped: tuple[str, ...] = ()) -> Transformer:
    """An AWQ folder, and the dense model its weights stand for."""
    scheme = Scheme(128, skipped)
    model, tensors = randomised(config), {}
    for name, value in hf_tensors(model, "float32").items():
        module = name.removesuffix(".weight")
        if module.endswith(LINEAR) and scheme.covers(module):
            tensors |= {f"{module}.{leaf}": part for leaf, part in pack_weight(quantise(value)).items()}
        else:
            tensors[name] = value.half()
    write_folder(folder, tensors, to_hf(config, "float16") | {"quantization_config": awq.scheme_to_hf(scheme)})
    twin = {
        name: dequantise(quantise(value)) if f"{name.removesuffix('weight')}qweight" in tensors else value.half().float()
        for name, value in hf_tensors(model, "float32").items()
    }
    write_folder(folder / "twin", twin, to_hf(config, "float32"))
    return Transformer.load(folder / "twin")


@pytest.mark.parametrize("skipped", [(), ("mlp",), ("layers.0.", "o_proj")], ids=["all", "attention", "some"])
def test_an_awq_folder_loads_dense_and_int4(skipped: tuple[str, ...], tmp_path: Path) -> None:
    config = replace(SMALL, attention_bias=True, tied=bool(skipped))
    twin = write_awq(config, tmp_path, skipped)
    ids = prompt(config, 40)
    with torch.inference_mode():
        wanted = twin(ids)
        assert torch.equal(load_transformer(tmp_path, "float32", weights="dense")(ids), wanted)
        assert relative(load_transformer(tmp_path, "float32", weights="int4")(ids), wanted) < 1e-4
        assert relative(load_transformer(tmp_path, weights="int4")(ids), wanted) < 5e-2


def test_a_half_quantised_fused_module_is_refused(tmp_path: Path) -> None:
    write_awq(SMALL, tmp_path, ("v_proj",))
    with pytest.raises(ValueError, match="v_proj run as one product .* quantise them alike"):
        load_transformer(tmp_path)


def test_int4_swaps_the_fused_modules_in_and_auto_is_dense_on_the_cpu(tmp_path: Path) -> None:
    write_awq(SMALL, tmp_path)
    int4 = load_transformer(tmp_path, weights="int4")
    assert isinstance(int4.layers[1].attention.qkv, Int4Linear) and isinstance(int4.layers[0].mlp.gate_up, Int4Linear)
    auto = load_transformer(tmp_path)
    assert isinstance(auto.layers[0].mlp.down, torch.nn.Linear) and auto.norm.weight.dtype == torch.bfloat16
    with pytest.raises(ValueError, match="weights='dense' to save"):
        int4.save(tmp_path / "copy")


def test_a_dense_copy_of_an_awq_folder_is_a_plain_checkpoint(tmp_path: Path) -> None:
    twin = write_awq(SMALL, tmp_path)
    load_transformer(tmp_path, "float32", weights="dense").save(tmp_path / "plain", "float32")
    ids = prompt(SMALL, 9)
    with torch.inference_mode():
        assert torch.equal(Transformer.load(tmp_path / "plain")(ids), twin(ids))


@pytest.mark.parametrize("weights", ["int4", "dense"])
def test_a_missing_packed_tensor_is_refused(weights: str, tmp_path: Path) -> None:
    write_awq(SMALL, tmp_path)
    from safetensors.torch import load_file, save_file

    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    tensors.pop("model.layers.0.self_attn.k_proj.qzeros")
    save_file(tensors, path)
    with pytest.raises(ValueError, match="k_proj.qzeros is missing"):
        load_transformer(tmp_path, weights=weights)


def test_the_clipping_search_equals_the_naive_twin() -> None:
    dice = torch.Generator().manual_seed(0)
    weight, inputs = torch.randn(8, 64, generator=dice), torch.randn(2, 30, 64, generator=dice)

    def rounded(clipped: Tensor) -> Tensor:
        return dequantise(quantise(clipped, 32))

    found = best_clip(weight, inputs, 32, rounded)
    for o in range(8):
        for g, part in enumerate(weight[o].split(32)):
            x = inputs.view(60, 64)[:, 32 * g : 32 * (g + 1)]
            limits = [part.abs().max() * (1 - step / 20) for step in range(10)]
            errors = [((x @ (rounded(part.clamp(-m, m)[None])[0] - part)) ** 2).mean() for m in limits]
            assert found[o, g, 0] == limits[int(torch.stack(errors).argmin())]


QUANTISERS = {
    "autoawq": (quantize_awq, "awq", r"flashspec\[quantize\].* or quantise with llm-compressor"),
    "llm-compressor": (quantize_gptq, "llmcompressor", "pip install llmcompressor .* or quantise with AutoAWQ"),
}


@pytest.mark.parametrize("name", QUANTISERS)
def test_quantising_without_the_quantiser_names_it_and_the_other(name: str, tmp_path: Path, monkeypatch) -> None:
    quantise, module, message = QUANTISERS[name]
    folder = quantisable(tmp_path)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ModuleNotFoundError, match=message) as refused:
        quantise(folder, tmp_path / "out", ["a b " * 600])
    assert "\n" not in str(refused.value) and {path.name for path in tmp_path.iterdir()} == {"dense"}


@pytest.mark.parametrize("quantise", [quantize_awq, quantize_gptq])
def test_too_little_calibration_text_is_refused(quantise, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 512 tokens of text, got 3"):
        quantise(quantisable(tmp_path), tmp_path / "out", ["a b a"])


@pytest.mark.parametrize("quantise", [quantize_awq, quantize_gptq])
def test_quantising_a_quantised_folder_or_one_without_tokenizer_is_refused(quantise, tmp_path: Path) -> None:
    folder = quantisable(tmp_path)
    write_awq(SMALL, tmp_path / "packed")
    with pytest.raises(ValueError, match="quantised already"):
        quantise(tmp_path / "packed", tmp_path / "out", ["a b " * 600])
    (folder / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match="tokenizer.json is missing"):
        quantise(folder, tmp_path / "out", ["a b " * 600])


def test_the_command_hands_its_files_to_the_quantiser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flashspec.cli import quantize
    from flashspec.cli.main import status

    calls: list[tuple] = []
    monkeypatch.setattr(quantize, "quantize_awq", lambda *arguments: calls.append(arguments))
    text = tmp_path / "text"
    text.write_text("a b")
    assert status(["quantize", "dense", str(tmp_path / "awq"), "--text", str(text), "--group-size", "64"]) == 0
    assert calls == [(Path("dense"), tmp_path / "awq", ["a b"], 64, 16)]
    monkeypatch.setattr(quantize, "quantize_gptq", lambda *arguments: calls.append(arguments[::-1]))
    assert status(["quantize", "dense", str(tmp_path / "awq"), "--text", str(text), "--by", "llm-compressor"]) == 0
    assert calls[1] == (16, 128, ["a b"], tmp_path / "awq", Path("dense"))
    assert status(["quantize", "dense", str(tmp_path / "awq"), "--text", str(text), "--by", "hope"]) == 2
    assert status(["quantize", "dense", str(tmp_path / "awq"), "--text", "nowhere"]) == 2


def quantisable(folder: Path) -> Path:
    """A small dense folder with a tokenizer of three words."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"<|endoftext|>": 0, "a": 1, "b": 2}, unk_token="<|endoftext|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    randomised(SMALL).save(folder / "dense", "float32")
    tokenizer.save(str(folder / "dense" / "tokenizer.json"))
    return folder / "dense"


@pytest.mark.slow
def test_autoawq_writes_a_folder_that_loads_both_ways(tmp_path: Path) -> None:
    pytest.importorskip("awq")
    folder = quantisable(tmp_path)
    quantize_awq(folder, tmp_path / "awq", ["a b b " * 200])
    ids = prompt(SMALL, 20)
    with torch.inference_mode():
        wanted = Transformer.load(folder)(ids)
        dense = load_transformer(tmp_path / "awq", "float32", weights="dense")(ids)
        int4 = load_transformer(tmp_path / "awq", "float32", weights="int4")(ids)
    assert relative(dense, wanted) < 0.5
    assert relative(int4, dense) < 1e-4


@pytest.mark.slow
def test_llm_compressor_writes_a_folder_that_loads_through_transformers(tmp_path: Path) -> None:
    pytest.importorskip("llmcompressor")
    from flashspec.decoding.models import load

    folder = quantisable(tmp_path)
    quantize_gptq(folder, tmp_path / "out", ["a b b " * 200])
    assert (tmp_path / "out" / "tokenizer.json").is_file() and not (tmp_path / "out.part").exists()
    ids = prompt(SMALL, 20)[0]
    packed, dense = (load(place, None, "float32", "cpu").target for place in (tmp_path / "out", folder))
    with torch.inference_mode():
        logits = packed.model(ids[None]).logits
        assert 1e-4 < relative(logits, dense(ids[None])) < 0.5
