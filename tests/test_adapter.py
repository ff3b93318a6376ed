"""Models of other architectures decode through transformers' own code: same text, rewound caches, nothing foreign run."""

import importlib.util

import pytest
import torch
from shelf import python, refused
from test_checkpoint import WEIGHTS, config, tensors, without
from test_checkpoint import text as spoiled_text
from test_transformer import BASE, randomised

from flashspec import generate, load
from flashspec.models import adapter, memory
from flashspec.models.adapter import Adapter, AdapterReader

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


@pytest.mark.parametrize("name", OTHERS)
def test_another_architecture_prints_the_text_of_transformers(name, tmp_path):
    theirs = write(tmp_path, *OTHERS[name])
    models = load(tmp_path, tmp_path, dtype="float32", device="cpu")
    assert isinstance(models.target, Adapter)
    whole = name in ("gemma2 (soft-capped logits)", "opt of 350M's kind")
    assert (models.target.head_weight is None) == whole
    for method in ("baseline", "dense"):
        assert generate(models, IDS, method, max_new_tokens=20, stop=()).tokens == greedy(theirs)
    refused("read whole", generate, models, IDS, "self_speculation", exits=(1,))
    if whole:
        refused("no vocabulary weight", generate, models, IDS, "flash")


def test_a_wrong_draft_is_corrected_through_the_cropped_cache(tmp_path, monkeypatch):
    roomy = OTHERS["gpt2"][1] | {"n_positions": 512}
    theirs = write(tmp_path / "target", "gpt2", roomy)
    write(tmp_path / "draft", "gpt2", roomy | {"n_layer": 1})
    models = load(tmp_path / "target", tmp_path / "draft", dtype="float32", device="cpu")
    assert generate(models, IDS, "dense", max_new_tokens=20, stop=()).tokens == greedy(theirs)
    assert generate(models, IDS, max_new_tokens=20, stop=()).tokens == greedy(theirs)
    refused("with weights='auto' transformers may load it", load, tmp_path / "target", None, weights="dense")
    refused("leave :int4 away", load, tmp_path / "target", f"{tmp_path / 'draft'}:int4", dtype="float32", device="cpu")
    monkeypatch.setattr(AdapterReader, "rewind", lambda self, n: setattr(self, "seen", min(self.seen, n)))
    assert generate(models, IDS, "dense", max_new_tokens=20, stop=()).tokens != greedy(theirs)  # the control: an uncropped cache


def test_a_draft_that_gives_logits_drafts_with_them(tmp_path):
    theirs = write(tmp_path / "m", *OTHERS["gemma2 (soft-capped logits)"])
    models = load(tmp_path / "m", tmp_path / "m", dtype="float32", device="cpu")
    found = generate(models, IDS, max_new_tokens=20, stop=())
    assert models.draft.vocabulary is None and found.tokens == greedy(theirs) and found.stats.accepted


def damaged(damage):
    return lambda folder: (write(folder, *OTHERS["gpt2"]), damage(folder))


def changed(**changes):
    return lambda folder: (randomised(BASE).save(folder, "float32"), config(**changes)(folder))


def quantised_by(name, **more):
    return changed(quantization_config={"quant_method": name, **more})


MAMBA = {"vocab_size": 67, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}
MINE = {"model_type": "mine", "architectures": ["Mine"]}
LOST = "transformer.h.1.mlp.c_fc.weight"
REFUSED = {
    "state": (lambda folder: write(folder, "mamba", MAMBA), "MambaForCausalLM keeps a state that cannot be rewound"),
    "foreign code": (changed(**MINE, auto_map={"AutoConfig": "mine.py"}), "contains custom code"),
    "unknown": (changed(**MINE), "does not recognize this architecture"),
    "gptq": (quantised_by("gptq", bits=4), "gptq.*gptqmodel and optimum"),
    "compressed-tensors": (quantised_by("compressed-tensors"), "need compressed-tensors installed"),
    "bitsandbytes": (quantised_by("bitsandbytes", load_in_4bit=True), "need bitsandbytes installed"),
    "unknown quantisation": (quantised_by("quip"), "quantised by 'quip'.* it loads: gptq, compressed"),
    "int8 awq": (quantised_by("awq", bits=8), "bits = 8"),
    "pickled": (damaged(without(WEIGHTS, spoiled_text("pytorch_model.bin", ""))), "pickled weights are never read"),
    "a tensor less": (damaged(tensors(lambda t: t.pop(LOST))), r"lacks .*h.1.mlp.c_fc.weight \(1 such tensors\).* at random"),
    "truncated": (damaged(spoiled_text(WEIGHTS, lambda raw: raw[:-100])), "transformers cannot load"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_loaded_is_refused_in_one_sentence(name, tmp_path):
    if importlib.util.find_spec(name.replace("-", "_")):
        pytest.skip(f"{name} is installed here")
    spoil, words = REFUSED[name]
    spoil(tmp_path)
    refused(words, load, tmp_path, None, error=(ValueError, ModuleNotFoundError), device="cpu")


def test_a_model_of_transformers_that_does_not_fit_is_refused_before_it_is_loaded(tmp_path, monkeypatch):
    write(tmp_path, *OTHERS["gpt2"])
    monkeypatch.setattr(memory, "free_bytes", lambda device: 1000)
    monkeypatch.setattr(adapter, "_from_pretrained", lambda *_: pytest.fail("it was loaded"))
    refused(r"needs about 0.0 GB of cpu memory and 0.0 GB are free; take a smaller", load, tmp_path, None, device="cpu")


SHARED = """
import os, sys, torch
torch.set_num_threads(1)
from flashspec import generate, load
models = load(sys.argv[1], sys.argv[2], dtype="float32", device="cpu")
mlp = next(m for n, m in models.target.model.named_modules() if n.endswith("mlp.down_proj"))
part = mlp.weight.to_local() if hasattr(mlp.weight, "to_local") else mlp.weight
for method in ("baseline", "dense"):
    tokens = generate(models, [5, 9, 2, 14, 7, 3], method, max_new_tokens=16, stop=()).tokens
    os.write(1, (" ".join(map(str, ("tokens", method, part.shape[1], *tokens))) + "\\n").encode())
torch.distributed.destroy_process_group()
"""


def test_two_processes_that_share_a_target_print_the_text_of_one(tmp_path):
    theirs = write(tmp_path / "target", "llama", LLAMA_LIKE)
    write(tmp_path / "draft", "llama", LLAMA_LIKE | {"num_hidden_layers": 1})
    (tmp_path / "decode.py").write_text(SHARED)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", tmp_path / "decode.py"]
    done = python(*launch, tmp_path / "target", tmp_path / "draft", OMP_NUM_THREADS="1")
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith("tokens")]
    assert len(lines) == 4, done.stderr[-2000:]
    for _, _, width, *tokens in lines:
        assert int(width) == LLAMA_LIKE["intermediate_size"] // 2
        assert [int(token) for token in tokens] == greedy(theirs, 16)
