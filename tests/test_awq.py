"""AWQ's 4-bit layout: packing, dequantising, layers on it, whole checkpoints, and the quantiser's own parts."""

import sys
from dataclasses import replace

import pytest
import torch
from msgspec import to_builtins
from shelf import far, refused
from test_checkpoint import tensors, without
from test_transformer import BASE, prompt, randomised

from flashspec import Transformer
from flashspec.kernels.integers import Shelf, rounded
from flashspec.models import packed as awq
from flashspec.models.checkpoint import hf_tensors, write_folder
from flashspec.models.config import to_hf
from flashspec.models.packed import Awq, Int4Linear, PackedLinear, Scheme, layer, unpack
from flashspec.train.quantize import quantize_awq

SMALL = replace(BASE, hidden=128, ffn=256, heads=4, kv_heads=2, head_dim=32)
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def random_weight(inputs, outputs, group=128):
    dice = torch.Generator().manual_seed(0)
    whole, zeros = (torch.randint(0, 16, (rows, outputs), generator=dice) for rows in (inputs, inputs // group))
    scales = (torch.rand(inputs // group, outputs, generator=dice) * 0.02 + 0.001).half()
    return Awq(packed(whole), packed(zeros), scales)


def packed(values):
    eights = values.long().view(len(values), -1, 8)[..., (0, 2, 4, 6, 1, 3, 5, 7)]
    return (eights << torch.arange(0, 32, 4)).sum(-1).to(torch.int32)


def quantised(weight, group=128):
    """A dense weight [out, in] rounded to 4 bits, minimum and maximum of each group exactly representable."""
    groups = weight.float().view(weight.shape[0], -1, group)
    low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
    scales = ((high - low).clamp(min=1e-5) / 15).half().float()
    zeros = (-low / scales).round().clamp(0, 15)
    whole = ((groups / scales[..., None]).round() + zeros[..., None]).clamp(0, 15).view_as(weight)
    return Awq(packed(whole.t()), packed(zeros.t()), scales.half().t().contiguous())


def dense(weight):
    return awq.dequantise(weight, torch.empty(weight.shape))


def gemm_dequantised(weight):
    order, shifts, group = torch.tensor([0, 4, 1, 5, 2, 6, 3, 7]), torch.arange(0, 32, 4), weight.group_size
    whole, zeros = (
        (part.unsqueeze(-1) >> shifts & 15)[..., order].flatten(1).repeat_interleave(times, 0)
        for part, times in ((weight.qweight, 1), (weight.qzeros, group))
    )
    return (whole - zeros) * weight.scales.repeat_interleave(group, 0)


@pytest.mark.parametrize("group", [32, 64, 128])
def test_dequantising_equals_autoawqs_formula(group, monkeypatch):
    assert unpack(torch.tensor([[0x75316420]], dtype=torch.int32)).tolist() == [list(range(8))]
    weight = random_weight(256, 48, group)
    assert torch.equal(awq.dequantise(weight, torch.empty(48, 256, dtype=torch.float16)).t(), gemm_dequantised(weight))
    monkeypatch.setattr(awq, "ORDER", tuple(range(8)))
    assert far(dense(weight), gemm_dequantised(weight).t()) > 0.1


@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("shape", [(128, 16), (384, 640), (1024, 384), (128, 24)])
def test_an_awq_weight_in_panels_means_the_same_numbers(shape, group):
    weight, bias = random_weight(*shape, group), torch.linspace(-1, 1, shape[1])
    x = torch.randn(9, shape[0], generator=torch.Generator().manual_seed(1))
    narrow, wanted = layer(weight, bias, Shelf()), rounded(x) @ dense(weight).t() + bias
    assert isinstance(narrow, PackedLinear) and far(narrow.weight.dequantised(), dense(weight)) < 1e-3
    assert far(narrow(x), wanted) < 1e-3
    assert torch.equal(narrow(x), torch.cat([narrow(row[None]) for row in x]))
    shifted = weight._replace(qzeros=packed((unpack(weight.qzeros) + 1) % 16))
    assert far(layer(shifted, bias, Shelf())(x), wanted) > 5e-3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_int4_matmul_on_cuda_equals_the_panels():
    weight = random_weight(1024, 384)
    x = torch.randn(3, 3, 1024).bfloat16()
    tiled = layer(Awq(*(part.cuda() for part in weight)), None, Shelf())
    assert isinstance(tiled, Int4Linear)
    assert far(tiled(x.cuda()).cpu(), layer(weight, None, Shelf())(x)) < 2e-2


def write_awq(config, folder, skipped=()):
    scheme, tensors, twin = Scheme(128, skipped), {}, {}
    for name, value in hf_tensors(randomised(config), config, "float32").items():
        module = name.removesuffix(".weight")
        if module.endswith(LINEAR) and scheme.covers(module):
            weight = quantised(value)
            tensors |= {f"{module}.{leaf}": part for leaf, part in weight._asdict().items()}
            twin[name] = dense(weight)
        else:
            tensors[name], twin[name] = value.half(), value.half().float()
    write_folder(folder, tensors, to_hf(config, "float16") | {"quantization_config": to_builtins(scheme)})
    write_folder(folder / "twin", twin, to_hf(config, "float32"))
    return Transformer.load(folder / "twin")


@pytest.mark.parametrize("skipped", [(), ("mlp",), ("layers.0.", "o_proj")], ids=["all", "attention", "some"])
def test_an_awq_folder_loads_dense_and_int4(skipped, tmp_path):
    config = replace(SMALL, attention_bias=True, tied=bool(skipped))
    twin = write_awq(config, tmp_path, skipped)
    ids = prompt(config, 40)
    with torch.inference_mode():
        wanted = twin(ids)
        assert torch.equal(Transformer.load(tmp_path, "float32", weights="dense")(ids), wanted)
        assert far(Transformer.load(tmp_path, "float32", weights="int4")(ids), wanted) < 3e-2
        assert far((int4 := Transformer.load(tmp_path))(ids), wanted) < 5e-2
        refused("weights='dense' to save", int4.save, tmp_path / "copy")
        Transformer.load(tmp_path, "float32", weights="dense").save(tmp_path / "plain", "float32")
        assert torch.equal(Transformer.load(tmp_path / "plain")(ids), wanted)


def test_what_cannot_be_read_or_quantised_is_refused_in_one_sentence(tmp_path, monkeypatch):
    write_awq(SMALL, tmp_path / "half", ("v_proj",))
    refused("v_proj run as one product .* quantise them alike", Transformer.load, tmp_path / "half")
    write_awq(SMALL, packed := tmp_path / "packed")
    folder, out, text = quantisable(tmp_path), tmp_path / "out", ["a b " * 600]
    monkeypatch.setitem(sys.modules, "awq", None)
    refused(r"pip install 'flashspec\[quantize\]'", quantize_awq, folder, out, text, error=ModuleNotFoundError)
    refused("the text has 3 tokens; give at least 512", quantize_awq, folder, out, ["a b a"])
    refused("quantised already", quantize_awq, packed, out, text)
    without("tokenizer.json")(folder)
    refused("tokenizer.json is missing", quantize_awq, folder, out, text, error=FileNotFoundError)
    assert {path.name for path in tmp_path.iterdir()} == {"dense", "half", "packed"}
    tensors(lambda t: t.pop("model.layers.0.self_attn.k_proj.qzeros"))(packed)
    refused("k_proj.qzeros is missing", Transformer.load, packed)


def quantisable(folder):
    """A small dense folder with a tokenizer of three words."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"<|endoftext|>": 0, "a": 1, "b": 2}, unk_token="<|endoftext|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    randomised(SMALL).save(folder / "dense", "float32")
    tokenizer.save(str(folder / "dense" / "tokenizer.json"))
    return folder / "dense"


def test_autoawq_writes_a_folder_that_loads_both_ways(tmp_path):
    pytest.importorskip("awq")
    folder = quantisable(tmp_path)
    quantize_awq(folder, tmp_path / "awq", ["a b b " * 200])
    ids = prompt(SMALL, 20)
    with torch.inference_mode():
        wanted = Transformer.load(folder)(ids)
        dense = Transformer.load(tmp_path / "awq", "float32", weights="dense")(ids)
        int4 = Transformer.load(tmp_path / "awq", "float32", weights="int4")(ids)
    assert far(dense, wanted) < 0.5
    assert far(int4, dense) < 3e-2
