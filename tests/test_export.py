"""Exported models are the same models: to transformers, to the gguf library and to ourselves."""

import json
from dataclasses import replace

import numpy as np
import pytest
import shelf
import test_gguf
import torch
from shelf import far
from toys import with_biases

import flashspec as fs
from flashspec.cli.main import status
from flashspec.models.chat import chat_of, chat_prompt
from flashspec.models.config import RopeScaling
from flashspec.models.tokenizer import tokenizer_of, words_of
from flashspec.models.transformer import Transformer
from flashspec.train.corpus import write_tokenizer

gguf = pytest.importorskip("gguf")
IDS = torch.arange(30)[None] * 7 % 500
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
    config = replace(test_gguf.CONFIG, vocab_size=512, eos=(0, 5), bos=0, **{"context": 256, **changes})
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
        assert far(read(IDS), model(IDS)) < error < far(read(IDS.flip(1)), model(IDS))  # with its control
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
        assert far(ours(IDS), theirs(IDS).logits) < 1e-4 < far(ours(IDS.flip(1)), theirs(IDS).logits)
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
