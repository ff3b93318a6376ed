"""Checkpoints are found by folder or cached name, and say how they want to be talked to and sampled."""

import json
import shutil
from pathlib import Path

import pytest
import shelf

from flashspec.cli.main import status
from flashspec.decoding.models import check_tokenizers, folder_of, load
from flashspec.models.chat import chat_prompt, generation_defaults
from flashspec.models.folder import located
from flashspec.train.corpus import END

TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<answer>{% endif %}"
GENERATION = {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "repetition_penalty": 1.1, "eos_token_id": 0}

REFUSING = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{{ m.content }}{% endfor %}"
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = shelf.write_pair(tmp_path_factory.mktemp("talking"))
    (made["target"] / "digests.json").unlink()
    (made["target"] / "generation_config.json").write_text(json.dumps(GENERATION))
    path = made["target"] / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": TEMPLATE}))
    return made


def test_a_chat_template_frames_the_message_or_refuses_it_in_one_sentence(folders, tmp_path):
    pytest.importorskip("transformers")
    assert chat_prompt(folders["target"], "hello") == "<user>hello<answer>"
    assert chat_prompt(folders["target"], "hello", "be brief") == "<system>be brief<user>hello<answer>"
    with pytest.raises(ValueError, match="has no chat template"):
        chat_prompt(folders["draft"], "hello")
    strict = Path(shutil.copytree(folders["target"], tmp_path / "strict"))  # as Gemma's, which takes no system message
    path = strict / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": REFUSING}))
    assert chat_prompt(strict, "hello") == "hello"
    with pytest.raises(ValueError, match=r"refuses this conversation \(no system role\).*leave the system message out") as system:
        chat_prompt(strict, "hello", "be brief")
    for path in strict.glob("*token*"):
        path.unlink()
    with pytest.raises(ValueError, match="tokenizer of .*copy the whole folder|has no chat template") as lacking:
        chat_prompt(strict, "hello")
    assert "\n" not in f"{system.value}{lacking.value}"


def test_generation_defaults_are_the_checkpoints_own(folders, tmp_path):
    found = generation_defaults(folders["target"])
    assert found.sampling == {"temperature": 0.6, "top_k": 20, "top_p": 0.95}
    assert found.ignored == {"repetition_penalty": 1.1}
    (tmp_path / "generation_config.json").write_text(json.dumps(GENERATION | {"do_sample": False}))
    assert generation_defaults(tmp_path).sampling == {}
    with pytest.raises(FileNotFoundError, match="no defaults of its own"):
        generation_defaults(folders["draft"])


def test_the_command_line_uses_both_and_flags_win(folders, capsys, monkeypatch):
    pytest.importorskip("transformers")
    pair = ["--target", str(folders["target"]), "--draft-model", str(folders["draft"]), "--max-new-tokens", "12"]

    def said(*arguments):
        assert status(["generate", *arguments, *pair, "--method", "dense"]) == 0
        return capsys.readouterr().out

    plain = said("hello")
    assert said("hello", "--chat") == said("<user>hello<answer>") != plain
    sampled = said("hello", "--defaults")
    assert sampled == said("hello", "--temperature", "0.6", "--top-k", "20", "--top-p", "0.95") != plain
    assert said("hello", "--defaults", "--temperature", "0") == plain
    assert status(["generate", "hello", "--defaults", *pair, "--method", "baseline"]) == 0
    assert "not applied: repetition_penalty 1.1" in capsys.readouterr().err
    for wrong in (["--ids", "1,2", "--chat"], ["x", "--system", "be brief"]):
        assert status(["generate", *wrong]) == 2 and "--system with --chat" in capsys.readouterr().err
    monkeypatch.setenv("RANK", "1")  # only the first of several processes prints
    assert (said("hello"), capsys.readouterr().err) == ("", "")


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


@pytest.mark.parametrize("name", ["nobody/nothing", "nobody-nothing", "../etc/passwd"])
def test_a_name_that_is_not_here_is_refused_in_one_sentence(name):
    with pytest.raises(FileNotFoundError, match="no model at .*shipped models: reference") as refused:
        folder_of(name, "target")
    message = str(refused.value)
    assert "\n" not in message and ("hf download" in message) == ("hf auth login" in message) == (name == "nobody/nothing")


def test_tokenizers_that_differ_are_refused_with_the_id_and_both_tokens(folders, tmp_path):
    raw = json.loads((folders["target"] / "tokenizer.json").read_text())
    words = {i: token for token, i in raw["model"]["vocab"].items()}
    raw["model"]["vocab"][words[7]], raw["model"]["vocab"][words[9]] = 9, 7
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw))
    check_tokenizers(folders["target"], folders["draft"])
    with pytest.raises(ValueError, match="2 ids differ: 7, .*; id 7 is .* in the target and .* in the draft") as refused:
        check_tokenizers(folders["target"], tmp_path)
    assert repr(words[7]) in str(refused.value) and repr(words[9]) in str(refused.value)
    raw["added_tokens"].append({"id": 9000, "content": "<more>"})
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw))
    with pytest.raises(ValueError, match="3 ids differ"):
        check_tokenizers(folders["target"], tmp_path)


def test_special_tokens_are_added_to_text_and_not_to_a_rendered_template(folders):
    from tokenizers.processors import TemplateProcessing

    models = load(folders["target"], None, device="cpu")
    end = models.tokenizer.token_to_id(END)
    models.tokenizer.post_processor = TemplateProcessing(single=f"{END} $A", special_tokens=[(END, end)])
    assert models.encode("a b") == [end, *models.encode("a b", rendered=True)]
