"""Models of other architectures decode through transformers' own code: same text, rewound caches, nothing foreign run."""

import importlib.util
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from test_checkpoint import WEIGHTS, config, tensors, without
from test_checkpoint import text as spoiled_text
from test_transformer import BASE, randomised

from flashspec import Limits, Stage, decode, generate, load
from flashspec.decoding.rules import rule_for
from flashspec.heads.dense import DenseHead, LogitRows
from flashspec.models import adapter, memory
from flashspec.models.adapter import Adapter, AdapterReader
from flashspec.sampling import GREEDY

transformers = pytest.importorskip("transformers")
IDS = [5, 9, 2, 14, 7, 3]
SMALL = {"vocab_size": 67, "num_hidden_layers": 2, "num_attention_heads": 4,
         "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}  # fmt: skip
LLAMA_LIKE = SMALL | {"intermediate_size": 48, "num_key_value_heads": 2, "max_position_embeddings": 64}
OTHERS = {
    "gpt2": ("gpt2", {"vocab_size": 67, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "eos_token_id": 2}),
    "gpt_neox": ("gpt_neox", {k: v for k, v in LLAMA_LIKE.items() if k != "num_key_value_heads"}),
    "gemma2 (soft-capped logits)": ("gemma2", LLAMA_LIKE | {"head_dim": 8, "final_logit_softcapping": 3.0, "sliding_window": 4}),
    "opt of 350M's kind": ("opt", SMALL | {"hidden_size": 32, "ffn_dim": 48, "word_embed_proj_dim": 16,
                                           "do_layer_norm_before": False}),
}  # fmt: skip


def write(folder, kind, settings):
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(kind, **settings)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.mul_(8)
    model.save_pretrained(folder)
    return model


def greedy(model, count=20):
    ids = torch.tensor([IDS])
    settings = {"max_new_tokens": count, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    return model.generate(ids, attention_mask=torch.ones_like(ids), **settings)[0, len(IDS) :].tolist()


def stage(model, every=1):
    head = LogitRows(model.config.vocab_size) if model.head_weight is None else DenseHead(None, model.head_weight)
    return Stage(AdapterReader(model, 64), head, rule_for(GREEDY, model.config.vocab_size), every)


def text(stages):
    return [token for step in decode(stages, IDS, Limits(20)) for token in step.tokens]


@pytest.mark.parametrize("name", OTHERS)
def test_another_architecture_prints_the_text_of_transformers(name, tmp_path):
    theirs = write(tmp_path, *OTHERS[name])
    models = load(tmp_path, tmp_path, dtype="float32", device="cpu")
    assert isinstance(models.target, Adapter)
    assert (models.target.head_weight is None) == (name in ("gemma2 (soft-capped logits)", "opt of 350M's kind"))
    wanted = greedy(theirs)
    for method in ("baseline", "dense"):
        assert generate(models, IDS, method, max_new_tokens=20, stop=()).tokens == wanted


def test_a_wrong_draft_is_corrected_through_the_cropped_cache(tmp_path, monkeypatch):
    roomy = OTHERS["gpt2"][1] | {"n_positions": 512}
    theirs = write(tmp_path / "target", "gpt2", roomy)
    write(tmp_path / "draft", "gpt2", roomy | {"n_layer": 1})
    draft, target = (Adapter.load(tmp_path / name) for name in ("draft", "target"))
    assert text([stage(draft), stage(target, 3)]) == greedy(theirs)
    monkeypatch.setattr(AdapterReader, "rewind", lambda self, n: setattr(self, "seen", min(self.seen, n)))
    assert text([stage(draft), stage(target, 3)]) != greedy(theirs)  # the control: a cache that is not cropped


def test_our_own_families_do_not_take_the_detour(tmp_path):
    randomised(BASE).save(tmp_path, "float32")
    model = load(tmp_path, None, device="cpu").target
    assert not isinstance(model, Adapter)
    reader = AdapterReader(Adapter.load(tmp_path), 64)
    ids = torch.tensor(IDS)
    with torch.inference_mode():
        assert reader.read(ids) == (len(IDS),)
        logits = DenseHead(None, reader.model.head_weight)(reader.rows[: len(IDS)]).logits
        assert torch.allclose(logits, model(ids[None])[0], rtol=1e-3, atol=1e-4)


def test_a_state_that_cannot_be_rewound_is_refused(tmp_path):
    write(tmp_path, "mamba", {"vocab_size": 67, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4})
    refused(tmp_path, "MambaForCausalLM keeps a state that cannot be rewound")


def quantised_by(name, **more):
    return {"quantization_config": {"quant_method": name, **more}}


FOREIGN = {
    "foreign code": ({"model_type": "mine", "architectures": ["Mine"], "auto_map": {"AutoConfig": "mine.py"}}, "code of its own"),
    "unknown": ({"model_type": "mine", "architectures": ["Mine"]}, "not known to the installed transformers"),
    "gptq": (quantised_by("gptq", bits=4), "gptq.*gptqmodel and optimum"),
    "compressed-tensors": (quantised_by("compressed-tensors"), "need compressed-tensors installed"),
    "bitsandbytes": (quantised_by("bitsandbytes", load_in_4bit=True), "need bitsandbytes installed"),
    "unknown quantisation": (quantised_by("quip"), "quantised by 'quip'.* it loads: gptq, compressed"),
    "int8 awq": (quantised_by("awq", bits=8), "bits = 8"),
}


def refused(folder, message, **choice):
    with pytest.raises((ValueError, ModuleNotFoundError), match=message) as caught:
        load(folder, None, **{"device": "cpu", **choice})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", FOREIGN)
def test_what_nobody_can_load_is_refused_in_one_sentence(name, tmp_path):
    if importlib.util.find_spec(name.replace("-", "_")):
        pytest.skip(f"{name} is installed here")
    changes, message = FOREIGN[name]
    randomised(BASE).save(tmp_path, "float32")
    config(**changes)(tmp_path)
    refused(tmp_path, message)


LOST = "transformer.h.1.mlp.c_fc.weight"
DAMAGE = {
    "pickled": (without(WEIGHTS, spoiled_text("pytorch_model.bin", "")), {}, "pickled weights are never read"),
    "a tensor less": (tensors(lambda t: t.pop(LOST)), {}, r"lacks .*h.1.mlp.c_fc.weight \(1 such tensors\).* at random"),
    "truncated": (spoiled_text(WEIGHTS, lambda raw: raw[:-100]), {}, "transformers cannot load"),
    "no such dtype": (str, {"dtype": "float8"}, "auto, float32, bfloat16"),
    "no such device": (str, {"device": "gpu"}, "use auto, cpu or cuda"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_model_of_another_architecture_is_refused_in_one_sentence(name, tmp_path):
    damage, choice, message = DAMAGE[name]
    write(tmp_path, *OTHERS["gpt2"])
    damage(tmp_path)
    refused(tmp_path, message, **choice)


def test_a_model_of_transformers_that_does_not_fit_is_refused_before_it_is_loaded(tmp_path, monkeypatch):
    write(tmp_path, *OTHERS["gpt2"])
    monkeypatch.setattr(memory, "free_bytes", lambda device: 1000)
    monkeypatch.setattr(adapter, "_from_pretrained", lambda *_: pytest.fail("it was loaded"))
    refused(tmp_path, r"needs about 0.0 GB of cpu memory and 0.0 GB are free; take a smaller")


def test_what_an_adapter_cannot_give_is_refused_and_left_out_of_a_live_page(tmp_path):
    pytest.importorskip("pandas")
    from flashspec.study import live

    write(tmp_path, *OTHERS["gemma2 (soft-capped logits)"])
    models = load(tmp_path, tmp_path, dtype="float32", device="cpu")
    with pytest.raises(ValueError, match="read whole"):
        generate(models, IDS, "self_speculation", exits=(1,))
    with pytest.raises(ValueError, match="no vocabulary weight"):
        generate(models, IDS, "flash")
    outputs = live.decode_all(models, IDS, GREEDY, 12)
    assert {"baseline", "dense", "dense, eager", "lookup"} <= set(outputs) and not {"flash", "hispec"} & set(outputs)
    assert live.agreeing(outputs) == len(outputs) - 1
    assert live.preferred(outputs) is outputs["dense"] and live.forwards(outputs, "flash") == live.NOT_OFFERED


SHARED = """
import os, sys, torch
torch.set_num_threads(1)
from flashspec.decoding.generate import generate
from flashspec.decoding.models import load
models = load(sys.argv[1], sys.argv[2], dtype="float32", device="cpu")
mlp = next(m for n, m in models.target.model.named_modules() if n.endswith("mlp.down_proj"))
part = mlp.weight.to_local() if hasattr(mlp.weight, "to_local") else mlp.weight
for method in ("baseline", "dense"):
    tokens = generate(models, [5, 9, 2, 14, 7, 3], method, max_new_tokens=16, stop=()).tokens
    os.write(1, (" ".join(map(str, ("tokens", method, part.shape[1], *tokens))) + "\\n").encode())
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_that_share_a_target_print_the_text_of_one(tmp_path):
    theirs = write(tmp_path / "target", "llama", LLAMA_LIKE)
    write(tmp_path / "draft", "llama", LLAMA_LIKE | {"num_hidden_layers": 1})
    (tmp_path / "decode.py").write_text(SHARED)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(tmp_path / "decode.py")]
    folders = [str(tmp_path / "target"), str(tmp_path / "draft")]
    alone = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launch, *folders], capture_output=True, text=True, timeout=600, env=alone)
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith("tokens")]
    assert len(lines) == 4, done.stderr[-2000:]
    for _, _, width, *tokens in lines:
        assert int(width) == LLAMA_LIKE["intermediate_size"] // 2
        assert [int(token) for token in tokens] == greedy(theirs, 16)


def four_bits(folder):
    """The dense folder of a tiny model as compressed-tensors packs it, 4 bits in groups of 32, and a dense copy beside it."""
    from compressed_tensors.compressors import pack_to_int32
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    dense, packed = load_file(path), dict[str, torch.Tensor]()
    for name, weight in list(dense.items()):
        if name.endswith("_proj.weight"):
            groups, stem = weight.view(len(weight), -1, 32), name.removesuffix(".weight")
            scale = groups.abs().amax(-1) / 7.5
            levels = (groups / scale[..., None]).round().clamp(-8, 7)
            dense[name] = (levels * scale[..., None]).view_as(weight)
            parts = {"packed": pack_to_int32(levels.to(torch.int8).view_as(weight), 4), "scale": scale.contiguous()}
            packed |= {f"{stem}.weight_{part}": tensor for part, tensor in parts.items()}
            packed[f"{stem}.weight_shape"] = torch.tensor(weight.shape)
        else:
            packed[name] = weight
    shutil.copytree(folder, folder / "dense")
    save_file(dense, folder / "dense" / "model.safetensors", {"format": "pt"})
    save_file(packed, path, {"format": "pt"})
    weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32}
    table = {"format": "pack-quantized", "quantization_status": "compressed", "ignore": ["lm_head"]}
    groups_ = {"config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}}}
    config(quantization_config={"quant_method": "compressed-tensors", **table, **groups_})(folder)


def test_compressed_tensors_are_read_through_transformers(tmp_path):
    pytest.importorskip("compressed_tensors", reason="compressed-tensors is not installed here")
    folder = tmp_path / "model"
    randomised(replace(BASE, hidden=64, ffn=128, heads=4, kv_heads=2, head_dim=16, tied=False)).save(folder, "float32")
    four_bits(folder)
    packed, dense = (load(place, None, dtype="float32", device="cpu") for place in (folder, folder / "dense"))
    assert isinstance(packed.target, Adapter) and not isinstance(dense.target, Adapter)
    texts = [generate(models, IDS, "baseline", max_new_tokens=12, stop=()).tokens for models in (packed, dense)]
    assert texts[0] == texts[1] and len(texts[0]) == 12
    plain, files = (sum(path.stat().st_size for path in place.glob("*.safetensors")) for place in (folder / "dense", folder))
    assert files < 0.7 * plain and adapter.needed_bytes(folder, "float32") == pytest.approx(plain, rel=0.05)
    assert adapter.needed_bytes(folder / "dense", "float32") == plain
