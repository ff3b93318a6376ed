"""The command line says what it does, counts what it did, and refuses in one sentence with status 2."""

import re
import sys
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import shelf

from flashspec.cli import generate as cli_generate
from flashspec.cli.main import status
from flashspec.decoding.state import Event, Step
from flashspec.study import Experiment, registry


@dataclass(frozen=True)
class Params:
    k: int = 4  # tokens a check
    names: tuple[str, ...] = ("a", "b")


@dataclass(frozen=True)
class Row:
    k: int
    time: float


def rows(params):
    """One row."""
    yield Row(params.k, 0.5)


EXPERIMENT = Experiment("toy", Params, Row, rows, measured=False, presets={"smoke": Params(k=1)})


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A target and its draft as complete checkpoint folders."""
    made = shelf.write_pair(tmp_path_factory.mktemp("models"))
    return ["--target", str(made["target"]), "--draft-model", str(made["draft"])]


@pytest.fixture
def toy(monkeypatch, tmp_path):
    monkeypatch.setattr(registry, "NAMES", ["toy"])
    monkeypatch.setitem(sys.modules, "flashspec.study.toy", SimpleNamespace(EXPERIMENT=EXPERIMENT))
    return ["--results", str(tmp_path / "results")]


def test_help_names_every_command(capsys):
    assert status([]) == status(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(f"\n  {name} " in said for name in ("generate", "run", "list", "train", "doctor"))


def test_every_method_streams_the_same_text_and_ends_with_its_counts(folders, capsys):
    texts = set()
    for method in ("baseline", "dense", "flash"):
        assert status(["generate", "def f(x):", *folders, "--method", method, "--max-new-tokens", "20", "--probes", "4"]) == 0
        said = capsys.readouterr()
        texts.add(said.out)
        assert re.search(r"20 tokens in [\d.]+ s, [\d.]+ tokens/s.*target forwards", said.err)
        assert ("acceptance" in said.err) == (method != "baseline")
    assert len(texts) == 1


HIERARCHIES = {
    **{name: [] for name in ("self_speculation", "hispec", "hispec_flash", "hispec_adaptive", "hispec_typical", "lookup")},
    "any exits and schedule": ["--method", "hispec", "--exits", "1,3", "--k", "3", "--interval", "5"],
    "adaptive by entropy": ["--method", "hispec", "--doubt", "entropy", "--draft-doubt", "3", "--verify-doubt", "3"],
    "adaptive self-speculation": ["--method", "self_speculation", "--k", "6", "--draft-doubt", "0.2"],
}


def test_every_hierarchy_is_reached_from_the_command_line(folders, capsys):
    line = ["generate", "def f(x):", *folders, "--max-new-tokens", "20"]
    assert status([*line, "--method", "baseline"]) == 0
    plain = capsys.readouterr().out
    for name, options in HIERARCHIES.items():
        assert status([*line, *(options or ["--method", name])]) == 0
        assert capsys.readouterr().out == plain, name
    smaller = f"{folders[3]},{folders[3]}"
    assert status([*line[:4], "--draft-model", smaller, "--max-new-tokens", "20", "--method", "cascade"]) == 0
    assert capsys.readouterr().out == plain


def test_a_lossy_method_says_so_and_an_exact_one_does_not(folders, capsys):
    line = ["generate", "def f(x):", *folders, "--max-new-tokens", "8", "--temperature", "1", "--rule", "speculative"]
    assert status([*line, "--method", "hispec_typical"]) == 0
    assert "lossy: the text need not follow the target's own law" in capsys.readouterr().err
    assert status([*line, "--method", "hispec"]) == 0
    assert "lossy" not in capsys.readouterr().err


def test_an_exit_of_no_use_is_told_with_its_agreement(folders, capsys, monkeypatch):
    monkeypatch.setattr("flashspec.decoding.generate.LEAST_AGREEMENT", 1.1)
    line = ["generate", "def f(x):", *folders, "--max-new-tokens", "40", "--method"]
    assert status([*line, "self_speculation"]) == 0
    assert re.search(r"warning: exit 2 agreed with the layers above it on \d+ of \d+ tokens", capsys.readouterr().err)
    assert status([*line, "dense"]) == 0
    assert "warning" not in capsys.readouterr().err


def test_show_colours_and_ids_are_a_prompt_too(folders, capsys):
    assert status(["generate", "--ids", "3,1,4", *folders, "--method", "dense", "--max-new-tokens", "12", "--show"]) == 0
    said = capsys.readouterr()
    assert "\x1b[32m" in said.out or "\x1b[31m" in said.out
    assert "accepted" in said.err and "bonus" in said.err


@pytest.mark.parametrize(
    ("event", "tokens", "expected"),
    [
        (Event(1, 4, 4, 5), 5, ["accepted"] * 4 + ["bonus"]),
        (Event(1, 4, 1, 5), 2, ["accepted", "corrected"]),
        (Event(1, 4, 0, 5), 1, ["corrected"]),
        (Event(1, 4, 4, 5), 2, ["accepted"] * 2),
    ],
)
def test_a_token_is_accepted_corrected_or_bonus(event, tokens, expected):
    finalised = Event(1, 0, 0, 1, 0)
    assert cli_generate.kinds(Step([0] * tokens, [Event(0, 0, 0, 4, 4), event, finalised]), 2) == expected


def test_a_character_of_several_tokens_is_printed_once_and_whole():
    class Bytes:
        tokenizer = True

        def decode(self, ids):
            return bytes(ids).decode("utf-8", errors="replace")

    texts = cli_generate.Texts(Bytes())
    pieces = [texts.push(byte) for byte in "aé€b".encode()]
    assert pieces == ["a", "", "é", "", "", "€", "b"]


def test_an_experiment_runs_with_its_fields_as_flags(toy, capsys):
    assert status(["run", "toy", "--k", "7", *toy]) == 0
    said = capsys.readouterr()
    assert re.search(r"7\s+0\.5", said.out) and "1 rows in" in said.err
    assert status(["run", "toy", "--help"]) == 0
    assert "tokens a check; int, default 4" in " ".join(capsys.readouterr().out.split())


def test_a_preset_of_all_experiments_is_checked_against_what_is_stored(toy, capsys, monkeypatch):
    assert status(["run", "--preset", "smoke", *toy]) == 0
    assert status(["run", "--preset", "smoke", "--check", *toy]) == 0
    changed = Experiment("toy", Params, Row, lambda params: [Row(params.k, 0.6)], measured=False, presets={"smoke": Params(k=1)})
    monkeypatch.setitem(sys.modules, "flashspec.study.toy", SimpleNamespace(EXPERIMENT=changed))
    capsys.readouterr()
    assert status(["run", "--preset", "smoke", "--check", *toy]) == 1
    assert "row 0, time: 0.5 is stored, 0.6 came out" in capsys.readouterr().out


def test_list_and_doctor_report(capsys):
    assert status(["list"]) == 0
    said = capsys.readouterr().out
    assert "experiments:" in said and "flash" in said and "--draft-model" in said
    assert status(["doctor"]) == 0
    said = capsys.readouterr().out
    assert all(word in said for word in ("processor", "bfloat16", "threads", "C compiler", "faiss", "transformers", "triton"))


@pytest.mark.parametrize(
    ("line", "word"),
    [
        (["frob"], "No such command"),
        (["generate"], "give a prompt"),
        (["generate", "x", "--ids", "1"], "give a prompt"),
        (["generate", "--ids", "1,x"], "'ids' expects"),
        (["generate", "x", "--tmperature", "1"], "--temperature"),
        (["generate", "x", "--method", "magic"], "known: baseline"),
        (["generate", "x", "--k", "0"], "k and interval must be at least 1"),
        (["generate", "x", "--k", "many"], "'k' expects int"),
        (["generate", "x", "--temperature", "-1"], "temperature"),
        (["generate", "x", "--top-p", "0"], "top_p"),
        (["generate", "x", "--top-p", "1.5"], "top_p"),
        (["generate", "x", "--finalize", "later"], "eager, deferred"),
        (["generate", "x", "--target", "/nowhere/at/all"], "no model at"),
        (["run", "nothing"], "unknown experiment 'nothing'"),
        (["run", "toy", "--kk", "3"], "No such option"),
        (["run", "toy", "--k", "x"], "'k' expects int"),
        (["run", "toy", "--preset", "grand"], "it has: smoke"),
    ],
)
def test_a_bad_line_is_refused_in_one_sentence_with_status_two(toy, capsys, line, word):
    assert status(line) == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: ") and said.err.count("\n") == 1 and word in said.err
    assert "Traceback" not in said.err and not said.out


def test_an_empty_prompt_and_too_long_a_prompt_are_refused(folders, capsys):
    assert status(["generate", "", *folders]) == 2
    assert "prompt is empty" in capsys.readouterr().err
    assert status(["generate", "word " * 4000, *folders]) == 2
    assert "context holds 256; shorten it" in capsys.readouterr().err
