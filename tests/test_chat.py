"""Checkpoints are found by folder or cached name, and say how they want to be talked to and sampled."""

import json
import shutil
import sys
from functools import partial
from pathlib import Path

import pytest
import shelf
from shelf import python, refused

from flashspec.decoding.models import check_tokenizers, folder_of, load
from flashspec.models.chat import chat_of, chat_prompt, generation_defaults
from flashspec.models.folder import PAIRS, located
from flashspec.train.corpus import END

DOUBLING = "{%% set n = namespace(x='aa') %%}{%% for i in range(60) %%}{%% set n.x = n.x %s n.x %%}{%% endfor %%}"
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<answer>{% endif %}"
GENERATION = {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "repetition_penalty": 1.1, "eos_token_id": 0}
REFUSING = "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}hello{% endfor %}"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = shelf.write_pair(tmp_path_factory.mktemp("talking"))
    (made["target"] / "digests.json").unlink()
    (made["target"] / "generation_config.json").write_text(json.dumps(GENERATION))
    path = made["target"] / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": TEMPLATE}))
    return made


def test_a_chat_template_frames_the_message_or_refuses_it_in_one_sentence(folders, tmp_path):
    call = "import sys; from flashspec.models import chat, folder; chat.chat_prompt(folder.located(sys.argv[1]), 'x')"
    assert python("-c", f"{call}; sys.exit('transformers' in sys.modules)", folders["target"]).returncode == 0
    assert chat_prompt(folders["target"], "hello") == "<user>hello<answer>"
    assert chat_prompt(folders["target"], "hello", "be brief") == "<system>be brief<user>hello<answer>"
    refused("has no chat template", chat_prompt, folders["draft"], "hello")
    strict = Path(shutil.copytree(folders["target"], tmp_path / "strict"))  # as Gemma's, which takes no system message
    path = strict / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": REFUSING}))
    assert chat_prompt(strict, "hello") == "hello"
    said = r"refuses this conversation \(no system role\).*leave the system message out"
    refused(said, chat_prompt, strict, "hello", "be brief")
    for path in strict.glob("*token*"):
        path.unlink()
    refused("has no chat template", chat_prompt, strict, "hello")


CONVERSATIONS = [("hello", None), ("  two\nlines <b> & 'quotes' ", "be brief"), ("漢字 🙂", "")]
SPOKEN = {
    "blocks": "{%- for m in messages %}\n {% if loop.first %}\n{{ bos_token }}\n{% endif %}\n{{ m.content|trim }}\n{% endfor %}",
    "json": "{{ messages | tojson }}{{ messages | tojson(indent=2) }}{{ {'a': '<é>'} | tojson(ensure_ascii=true) }}",
    "control": "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m.role + eos_token }}{% endfor %}",
    "time": "{{ strftime_now('%Y') }}{{ tools is none }}{{ documents is defined }}{{ sep_token is defined }}",
    "generation": "{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}{% endgeneration %}{{ x }}",
    "scopes": "{% set n = namespace(x=0) %}{% for m in messages %}{% set n.x = n.x + 2 * 3 %}{% endfor %}{{ n.x }}{{ '-' * 9 }}",
}


def theirs(template, message, system, **tokens):
    """What transformers makes of a conversation."""
    tokenizers, transformers = pytest.importorskip("tokenizers"), pytest.importorskip("transformers")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"?": 0}, unk_token="?"))
    made = transformers.PreTrainedTokenizerFast(tokenizer_object=words, chat_template=template, **tokens)
    said = [] if system is None else [{"role": "system", "content": system}]
    said.append({"role": "user", "content": message})
    return made.apply_chat_template(said, tokenize=False, add_generation_prompt=True)


@pytest.mark.parametrize("name", SPOKEN)
@pytest.mark.parametrize(("message", "system"), CONVERSATIONS)
def test_a_template_writes_what_transformers_writes(tmp_path, name, message, system):
    about = {"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": False}, "pad_token": None}
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps(about | {"chat_template": SPOKEN[name]}))
    wanted = theirs(SPOKEN[name], message, system, bos_token="<s>", eos_token="</s>")
    assert chat_prompt(tmp_path, message, system) == wanted
    path.write_text(json.dumps(about | {"chat_template": [{"name": "default", "template": "no"}]}))
    assert chat_prompt(tmp_path, message, system) == "no" != wanted  # the control
    (tmp_path / "chat_template.jinja").write_text(SPOKEN[name])
    assert chat_prompt(tmp_path, message, system) == wanted


@pytest.mark.parametrize(("name", "role"), [(name, role) for name, pair in PAIRS.items() for role in pair])
def test_the_templates_of_published_models_write_what_transformers_writes(name, role):
    path = shelf.here(folder_of, name, role)
    template, tokens = chat_of(path)
    for message, system in CONVERSATIONS:
        assert chat_prompt(path, message, system) == theirs(template, message, system, **tokens)


@pytest.mark.parametrize(("template", "said"), [
    ("{{ ''.__class__.__mro__ }}", "unsafe"),
    ("{{ cycler.__init__.__globals__.os }}", "unsafe"),
    ("{{ messages.append(1) }}", "unsafe"),
    ("{% include 'tokenizer.json' %}", "no loader"),
    ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "runs longer"),
    ("{% for a in range(99999) %}{{ 'long' * 99 }}{% endfor %}", "writes more than"),
    ("{{ 'a' * 10**9 }}{{ 2 ** 10**9 }}", "multiplies to more than"),
    *((DOUBLING % joined, "writes more than") for joined in "~+"),
    ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "recursion"),
    ("{% for m in messages %}", "end of template"),
])  # fmt: skip
def test_a_hostile_template_is_refused_in_one_sentence(tmp_path, monkeypatch, template, said):
    before = sys.gettrace()
    monkeypatch.setattr("flashspec.models.chat.SECONDS", 0.2 if said == "runs longer" else 60)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    refused(f"chat template of .* refuses this conversation \\(.*{said}", chat_prompt, tmp_path, "hello")
    assert sys.gettrace() is before


def test_generation_defaults_are_the_checkpoints_own(folders, tmp_path):
    wanted = {"temperature": 0.6, "top_k": 20, "top_p": 0.95}
    assert generation_defaults(folders["target"]) == (wanted, {"repetition_penalty": 1.1})
    (tmp_path / "generation_config.json").write_text(json.dumps(GENERATION | {"do_sample": False}))
    assert generation_defaults(tmp_path)[0] == {}
    refused("no defaults of its own", generation_defaults, folders["draft"], error=FileNotFoundError)


def test_a_gguf_file_may_say_how_it_samples(tmp_path):
    gguf, test_gguf = pytest.importorskip("gguf"), pytest.importorskip("test_gguf")
    for name, wanted in {"plain": {}, "sampled": {"temperature": 0.5, "top_k": 20}}.items():
        writer = gguf.GGUFWriter(tmp_path / f"{name}.gguf", "llama")
        if wanted:
            writer.add_float32("general.sampling.temp", 0.5)
            writer.add_int32("general.sampling.top_k", 20)
            writer.add_float32("general.sampling.penalty_repeat", 1.25)
        test_gguf.finish(writer)
        assert generation_defaults(tmp_path / f"{name}.gguf") == (wanted, {"repetition_penalty": 1.25} if wanted else {})


def test_the_command_line_uses_both_and_flags_win(folders, cli, monkeypatch):
    pair = ["--target", folders["target"], "--draft", folders["draft"], "--max-new-tokens", "12"]
    said = partial(cli, "generate", *pair, "--method", "dense")
    plain, sampled = said("hello"), said("hello", "--defaults")
    assert said("hello", "--chat").out == said("<user>hello<answer>").out != plain.out
    assert sampled.out == said("hello", "--temperature", "0.6", "--top-k", "20", "--top-p", "0.95").out != plain.out
    assert said("hello", "--defaults", "--temperature", "0").out == plain.out
    assert "not applied: repetition_penalty 1.1" in sampled.err
    monkeypatch.setenv("RANK", "1")  # only the first of several processes prints
    assert said("hello") == ("", "")


def snapshot(home, name):
    place = home / f"models--{name.replace('/', '--')}"
    folder = place / "snapshots" / "0123456789abcdef0123456789abcdef01234567"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(folder.name)
    return folder


def test_a_hub_name_is_its_snapshot_in_the_local_cache(tmp_path, monkeypatch):
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    wanted = snapshot(tmp_path, "some/model-1B")
    assert located("some/model-1B") == wanted == folder_of("some/model-1B", "target")
    (wanted / "config.json").rename(wanted / "a.gguf")
    assert located("some/model-1B") == wanted / "a.gguf" == located("some/model-1B/a.gguf")
    (wanted / "b.gguf").write_bytes(b"")
    assert located("some/model-1B/b.gguf") == wanted / "b.gguf"
    refused("holds several GGUF files; name one: some/model-1B/a.gguf, some/model-1B/b.gguf", located, "some/model-1B")
    refused("hf download some/model-1B`", located, "some/model-1B/c.gguf", error=FileNotFoundError)


@pytest.mark.parametrize("name", ["nobody/nothing", "nobody-nothing", "../etc/passwd"])
def test_a_name_that_is_not_here_is_refused_in_one_sentence(name):
    message = refused("no model at .*shipped models: reference", folder_of, name, "target", error=FileNotFoundError)
    assert ("hf download" in message) == ("hf auth login" in message) == (name == "nobody/nothing")


def test_tokenizers_that_differ_are_refused_with_the_id_and_both_tokens(folders, tmp_path):
    raw = json.loads((folders["target"] / "tokenizer.json").read_text())
    words = {i: token for token, i in raw["model"]["vocab"].items()}
    raw["model"]["vocab"][words[7]], raw["model"]["vocab"][words[9]] = 9, 7
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw))
    check_tokenizers(folders["target"], folders["draft"])
    differ = "2 ids differ: 7, .*; id 7 is .* in the target and .* in the draft"
    said = refused(differ, check_tokenizers, folders["target"], tmp_path)
    assert repr(words[7]) in said and repr(words[9]) in said
    raw["added_tokens"].append(raw["added_tokens"][0] | {"id": len(words), "content": "<more>"})
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw))
    refused("3 ids differ", check_tokenizers, folders["target"], tmp_path)


def test_special_tokens_are_added_to_text_and_not_to_a_rendered_template(folders):
    from tokenizers.processors import TemplateProcessing

    models = load(folders["target"], None, device="cpu")
    end = models.tokenizer.token_to_id(END)
    models.tokenizer.post_processor = TemplateProcessing(single=f"{END} $A", special_tokens=[(END, end)])
    assert models.encode("a b") == [end, *models.encode("a b", rendered=True)]
