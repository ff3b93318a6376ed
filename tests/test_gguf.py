"""GGUF files: the weights that the gguf library writes, in every type; hostile files are refused in one sentence.

Exported models are the same models: to transformers, to the gguf library and to ourselves.
"""

import json
import random
import struct
from dataclasses import replace

import numpy as np
import pytest
import shelf
import torch
from shelf import far, refused
from toys import with_biases

import flashspec as fs
from flashspec import kernels
from flashspec.cli.main import status
from flashspec.kernels.build import library
from flashspec.models.chat import chat_of, chat_prompt
from flashspec.models.config import ModelConfig, RopeScaling, parts
from flashspec.models.gguf import TYPES, Gguf
from flashspec.models.tokenizer import from_gguf, tokenizer_of, words_of
from flashspec.models.transformer import Transformer
from flashspec.train.corpus import write_tokenizer

gguf = pytest.importorskip("gguf")
ARCHITECTURES = {name: architecture for architecture, name in gguf.MODEL_ARCH_NAMES.items()}
CONFIG = ModelConfig("llama", 48, hidden=256, ffn=512, layers=2, heads=4, kv_heads=2, head_dim=64, context=64, norm_eps=2**-17)
FACTS = {"block_count": "layers", "context_length": "context", "embedding_length": "hidden", "feed_forward_length": "ffn",
         "head_count": "heads", "head_count_kv": "kv_heads", "key_length": "head_dim", "layer_norm_rms_eps": "norm_eps",
         "rope_freq_base": "rope_theta"}  # fmt: skip
SIZES = {"Q4_K": 144, "Q5_K": 176, "Q6_K": 210}
NUMBERS = {"Q4_K": slice(0, 4), "Q5_K": slice(0, 4), "Q6_K": slice(208, 210)}


def raw_of(weight, kind, dice):
    """A weight as the library stores it; of a K type, which it cannot write, random codes with small scales."""
    if kind not in SIZES:
        return gguf.quants.quantize(weight, gguf.GGMLQuantizationType[kind])
    blocks = dice.integers(0, 256, (len(weight), weight.shape[1] // 256, SIZES[kind]), dtype=np.uint8)
    numbers = NUMBERS[kind]
    scales = (dice.random((*blocks.shape[:2], (numbers.stop - numbers.start) // 2)) * 1e-3).astype(np.float16)
    scales[..., 1:] = {"Q4_K": 8, "Q5_K": 16}.get(kind, 1) * scales[..., :1]  # of minima: about what the codes give
    blocks[..., numbers] = scales.view(np.uint8)
    return blocks.reshape(len(weight), -1)


def written(path, config, kind, seed=0):
    """A file of a model whose matrices have this type, and the model that its numbers mean."""
    torch.manual_seed(seed)
    model, dice = Transformer(config).eval(), np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, config.family)
    for fact, field in FACTS.items():
        getattr(writer, f"add_{fact}")(getattr(config, field))
    words(writer, config.vocab_size)
    names = gguf.get_tensor_name_map(ARCHITECTURES[config.family], config.layers)
    for name, part in parts(config):
        for leaf in part.leaves:
            weight = model.get_parameter(f"{name}.{leaf}").data
            if leaf == "bias":
                weight.normal_()
            for source, rows in part.split(weight).items():
                put(writer, f"{names.get_name(source)}.{leaf}", rows, "F32" if rows.dim() == 1 else kind, dice)
    finish(writer)
    return model


def finish(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def put(writer, name, weight, kind, dice):
    """Write one tensor, and give the model the numbers that were written."""
    if kind in ("F32", "F16", "BF16"):
        number = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[kind]
        raw = weight.to(number).view(torch.uint8).numpy() if kind != "F32" else weight.numpy().copy()
        weight.copy_(weight.to(number).float())
    else:
        raw = raw_of(weight.numpy(), kind, dice)
        weight.copy_(torch.from_numpy(gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[kind])))
    heads = {"attn_q": CONFIG.heads, "attn_k": CONFIG.kv_heads}.get(name.split(".")[-2] if "." in name else "")
    if heads and writer.arch == "llama" and weight.dim() == 2:
        halves = raw.reshape(heads, 2, -1, raw.shape[1])  # between one another, as llama.cpp orders a head's rows
        raw = np.ascontiguousarray(halves.swapaxes(1, 2).reshape(raw.shape))
    writer.add_tensor(name, raw, raw_dtype=gguf.GGMLQuantizationType[kind])


def speak(writer, pre, tokens, merges):
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_merges(merges)


def words(writer, count):
    speak(writer, "gpt-2", ["t", "1", *(f"t{i}" for i in range(1, count - 1))], ["t 1"])
    writer.add_token_types([1] * count)
    writer.add_eos_token_id(3)


IDS = torch.arange(20)[None] * 7 % 48


@pytest.mark.parametrize("kind", [name for name, *_ in TYPES.values()])
def test_a_file_of_every_type_is_the_model_that_the_library_reads(tmp_path, kind):
    model = written(tmp_path / "m.gguf", CONFIG, kind)
    wide = Transformer.load(tmp_path / "m.gguf", dtype="float32")
    with torch.inference_mode():
        assert far(wide(IDS), model(IDS)) < 1e-4
        assert far(wide(IDS.flip(1)), model(IDS)) > 0.1  # the control
    if library() is not None and kind not in ("F32", "F16", "BF16"):
        packed = Transformer.load(tmp_path / "m.gguf")
        for ours, theirs in zip(packed.blocks, model.blocks, strict=True):
            kept = torch.cat([part.dequantised() for part in ours.attention.qkv.packed])
            assert far(kept, theirs.attention.qkv.weight) < (5e-3 if kind in ("Q5_1", "Q5_K") else 5e-4)
            assert far(ours.mlp.down.weight.dequantised(), theirs.mlp.down.weight) < 5e-3
        assert far(packed.embed(IDS), model.embed(IDS)) < 5e-3 < far(packed.embed(IDS), model.embed(IDS.flip(1)))


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("tied", [True, False])
def test_every_family_is_read_with_its_biases_norms_and_order(tmp_path, family, tied):
    config = replace(CONFIG, family=family, tied=tied)
    model = written(tmp_path / "m.gguf", config, "F32")
    read = Transformer.load(tmp_path / "m.gguf", dtype="float32")
    assert read.config == replace(config, eos=(3,), rope_theta=read.config.rope_theta)
    with torch.inference_mode():
        assert far(read(IDS), model(IDS)) < 1e-5


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A target and a smaller draft as files, in different types."""
    folder = tmp_path_factory.mktemp("pair")
    written(folder / "target.gguf", replace(CONFIG, layers=4, family="qwen2", tied=False), "Q4_1")
    written(folder / "draft.gguf", replace(CONFIG, layers=1, ffn=256, family="qwen2"), "Q5_0", seed=1)
    return fs.load(folder / "target.gguf", folder / "draft.gguf")


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.5])
@pytest.mark.parametrize("method", ["dense", "flash", "self_speculation", "hispec", "lookup"])
def test_every_exact_method_writes_the_text_of_plain_decoding(pair, method, temperature):
    options = {"hispec": {"exits": (1, 2)}, "self_speculation": {"exits": (2,)}}.get(method, {})
    sampling = fs.Sampling(temperature, seed=3)
    plain = fs.generate(pair, [3, 1, 4], "baseline", sampling, max_new_tokens=40, stop=())
    found = fs.generate(pair, [3, 1, 4], method, sampling, max_new_tokens=40, stop=(), **options)
    other = fs.generate(pair, [3, 1, 5], "baseline", fs.Sampling(temperature, seed=4), max_new_tokens=40, stop=())
    assert found.tokens == plain.tokens != other.tokens
    assert isinstance(pair.target.vocabulary, kernels.Packed) == (library() is not None)


def read_all(path):
    file = Gguf(path)
    from_gguf(file)
    return Transformer.load(path)


def hostile(data, dice):
    """One spoiled copy: cut, with flipped bits in its first part, or with a length, count or offset of absurd size."""
    data = bytearray(data)
    header = len(data) // 3
    way = dice.randrange(4)
    if way == 0:
        return bytes(data[: dice.randrange(len(data))])
    if way == 1:
        for _ in range(dice.randint(1, 4)):
            data[dice.randrange(header)] ^= 1 << dice.randrange(8)
    elif way == 2:
        at = dice.randrange(4, header - 8)
        data[at : at + 8] = struct.pack("<Q", dice.choice([2**60, 2**63, 2**32, 0, len(data), 2**64 - 1]))
    else:
        first, second = sorted(dice.sample(range(24, header), 2))
        data[first:first] = data[first:second]
    return bytes(data)


def test_spoiled_files_are_read_or_refused_in_one_sentence(tmp_path):
    small = replace(CONFIG, hidden=32, ffn=32, heads=2, kv_heads=1, head_dim=16, layers=1)
    written(tmp_path / "m.gguf", replace(small, family="qwen2"), "Q8_0")
    data, dice, count = (tmp_path / "m.gguf").read_bytes(), random.Random(0), 0
    read_all(tmp_path / "m.gguf")
    for _ in range(5000):
        (tmp_path / "bad.gguf").write_bytes(hostile(data, dice))
        try:
            read_all(tmp_path / "bad.gguf")
        except ValueError as error:
            count += 1
            assert "\n" not in str(error) and len(str(error)) < 500
    assert count > 2500


@pytest.mark.parametrize(("spoil", "said"), [
    (lambda b: b"GGML" + b[4:], "does not begin with the letters GGUF"),
    (lambda b: b[:4] + struct.pack("<I", 1) + b[8:], "version 1, readable are 2 and 3"),
    (lambda b: b[:8] + struct.pack("<Q", 2**60) + b[16:], "announces 1152921504606846976 tensors"),
    (lambda b: b[:24] + struct.pack("<Q", 2**60) + b[32:], "inside what it announces"),
    (lambda b: b[:-4096], "lies behind the end of the file"),
    (lambda b: b"", "does not begin"),
    (lambda b: b.replace(b"llama", b"gemma"), "holds the architecture 'gemma'; readable are llama"),
])  # fmt: skip
def test_what_is_wrong_with_a_file_is_said(tmp_path, spoil, said):
    written(tmp_path / "m.gguf", CONFIG, "F16")
    path = tmp_path / "bad.gguf"
    path.write_bytes(spoil((tmp_path / "m.gguf").read_bytes()))
    refused(said, Transformer.load, path)
    refused(said, fs.load, path, None)


def test_a_mixture_of_experts_is_refused_by_its_name(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "qwen3moe")
    writer.add_tensor("blk.0.ffn_up_exps.weight", np.zeros((2, 3, 32), np.float32))
    finish(writer)
    refused("holds the architecture 'qwen3moe'", fs.load, tmp_path / "m.gguf", None)
    written(tmp_path / "q.gguf", CONFIG, "Q8_0")
    refused("'auto', its own bits, or 'dense', got 'int4'", fs.load, tmp_path / "q.gguf", None, weights="int4")


LONG = torch.arange(30)[None] * 7 % 500
LLAMA3 = RopeScaling("llama3", factor=8.0)
SHAPES = {
    "llama": {"norm_eps": 2**-17, "rope": LLAMA3, "rope_theta": 5e5, "context": 9000},
    "biased llama": {"family": "llama", "attention_bias": True, "mlp_bias": True},
    "qwen2": {"tied": False},
    "qwen3": {"rope": RopeScaling("linear", 2.0)},
    "mistral": {},
}
TEMPLATE = "{% for m in messages %}{{ bos_token }}{{ m.role }}:{{ m.content }}{{ eos_token }}{% endfor %}"


def checkpoint(folder, **changes):
    """A small model's folder with a tokenizer, fewer words than rows, and a chat template."""
    config = replace(CONFIG, vocab_size=512, eos=(0, 5), bos=0, **{"context": 256, **changes})
    torch.manual_seed(0)
    model = with_biases(Transformer(config).eval().requires_grad_(False))
    model.save(folder, "float32")
    shelf.train_tokenizer(folder.parent / "tokenizer.json", "def f(x):\n    return it's 123 " * 9, 500)
    write_tokenizer(folder, folder.parent / "tokenizer.json")
    about = folder / "tokenizer_config.json"
    about.write_text(json.dumps(json.loads(about.read_text()) | {"chat_template": TEMPLATE}))
    return model


def exported(source, out, form, *flags):
    assert status(["export", str(source), str(out), "--format", form, *flags]) == 0
    return out


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize(("bits", "error"), [("q8_0", 0.03), ("q4_1", 0.3)])
def test_a_gguf_file_is_the_model_to_us_and_to_the_library(tmp_path, name, bits, error):
    model = checkpoint(tmp_path / "m", **{"family": name, **SHAPES[name]})
    path = exported(tmp_path / "m", tmp_path / "m.gguf", "gguf", "--bits", bits)
    read = Transformer.load(path, "float32")
    with torch.inference_mode():
        assert far(read(LONG), model(LONG)) < error < far(read(LONG.flip(1)), model(LONG))  # with its control
    family = "llama" if model.config.family == "mistral" else model.config.family
    assert read.config == replace(model.config, family=family)
    theirs = gguf.GGUFReader(path)
    found = {tensor.name: tensor for tensor in theirs.tensors}
    down = found["blk.1.ffn_down.weight"]
    assert down.tensor_type.name.lower() == bits and found["token_embd.weight"].tensor_type.name == "Q8_0"
    wide = torch.from_numpy(gguf.quants.dequantize(np.array(down.data), down.tensor_type))
    assert torch.equal(wide, read.blocks[1].mlp.down.weight)
    assert theirs.fields[f"{family}.block_count"].contents() == 2
    assert theirs.fields["general.file_type"].contents() == {"q8_0": 7, "q4_1": 3}[bits]


@pytest.mark.parametrize("form", ["gguf", "hf"])
def test_tokens_template_and_stops_are_the_models_own(tmp_path, form):
    checkpoint(tmp_path / "m", family="llama")
    out = exported(tmp_path / "m", tmp_path / ("m.gguf" if form == "gguf" else "out"), form)
    again = exported(out, tmp_path / "again", "hf")
    for place in (out, again):
        assert words_of(place) == words_of(tmp_path / "m") and chat_of(place) == (TEMPLATE, chat_of(tmp_path / "m")[1])
        assert chat_prompt(place, "hi", "be brief") == chat_prompt(tmp_path / "m", "hi", "be brief") != ""
        for text in ("def f(x): return 1", "it's 漢字 <|endoftext|>\n"):
            assert tokenizer_of(place).encode(text).ids == tokenizer_of(tmp_path / "m").encode(text).ids
        assert fs.load(place).stop == (0, 5)


@pytest.mark.parametrize("name", SHAPES)
def test_transformers_reads_the_folder_of_a_gguf_file(tmp_path, name):
    transformers = pytest.importorskip("transformers")
    checkpoint(tmp_path / "m", **{"family": name, **SHAPES[name]})
    path = exported(tmp_path / "m", tmp_path / "m.gguf", "gguf")
    folder = exported(path, tmp_path / "out", "hf")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ours = Transformer.load(folder, "float32")
    with torch.inference_mode():
        assert far(ours(LONG), theirs(LONG).logits) < 1e-4 < far(ours(LONG.flip(1)), theirs(LONG).logits)
    talker = transformers.AutoTokenizer.from_pretrained(folder)
    text = "def f(x):\n    return it's 123 <|endoftext|> 漢字"
    assert talker.encode(text) == transformers.AutoTokenizer.from_pretrained(tmp_path / "m").encode(text)
    said = [{"role": "user", "content": "hi"}]
    assert talker.apply_chat_template(said, tokenize=False) == chat_prompt(path, "hi")


def test_what_cannot_be_exported_or_read_again_is_refused_in_one_sentence(tmp_path, cli):
    source, out, words = tmp_path / "m", tmp_path / "x.gguf", tmp_path / "m" / "tokenizer.json"
    checkpoint(source, family="llama")
    for place, form, said in (
        (tmp_path / "x", "gguf", "ends in .gguf"),
        (out, "hf", "ends in .gguf"),
        (source / "x.gguf", "gguf", "which this command reads"),
    ):
        assert said in cli("export", source, place, "--format", form, code=2).err
    words.write_text(json.dumps(json.loads(words.read_text()) | {"pre_tokenizer": {"type": "Whitespace"}}))
    assert "is none of gpt-2, smollm, qwen2, llama-bpe" in cli("export", source, out, "--format", "gguf", code=2).err
    words.unlink()
    assert "has no tokenizer.json" in cli("export", source, out, "--format", "gguf", code=2).err and not out.exists()
    checkpoint(tmp_path / "m", family="llama", rope=replace(LLAMA3, high_freq_factor=16.0), rope_theta=5e5, context=9000)
    path = exported(tmp_path / "m", tmp_path / "m.gguf", "gguf")
    shelf.refused("scales its rotary frequencies in a way that is not read", Transformer.load, path)
