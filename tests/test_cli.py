"""The command line says what it does, and counts what it did."""

import re
from dataclasses import dataclass

import click
import pytest
import shelf

from flashspec.cli import generate as cli_generate
from flashspec.cli.main import COMMANDS, group, status
from flashspec.decoding.generate import count
from flashspec.decoding.method import Method
from flashspec.measure.planning import Question
from flashspec.sampling import RULES, Sampling
from flashspec.study import EXPERIMENTS, Experiment
from flashspec.study.parameters import hints, parse


@dataclass(frozen=True)
class Params:
    k: int = 4  # tokens a check
    names: tuple[str, ...] = ("a", "b")


@dataclass(frozen=True)
class Row:
    k: int
    time: float


def toy_experiment(time):
    presets = {"smoke": Params(k=1)}
    return Experiment("toy", Params, Row, lambda params: [Row(params.k, time)], measured=False, presets=presets)


@pytest.fixture(scope="module")
def write(tmp_path_factory):
    """Write with a target and its draft, complete checkpoint folders; standard output and error."""
    made = shelf.write_pair(tmp_path_factory.mktemp("models"))
    pair = ["--target", str(made["target"]), "--draft", str(made["draft"])]

    def write(capsys, options, prompt="def f(x):"):
        line = ["generate", *[prompt] * bool(prompt), *pair, "--max-new-tokens", "20"]
        assert status([*line, *options.format(draft=made["draft"]).split()]) == 0
        return capsys.readouterr()

    write.pair = pair
    return write


@pytest.fixture
def toy(monkeypatch, tmp_path):
    for name in list(EXPERIMENTS):
        monkeypatch.delitem(EXPERIMENTS, name)
    monkeypatch.setitem(EXPERIMENTS, "toy", toy_experiment(0.5))
    return ["--results", str(tmp_path / "results")]


def test_every_command_says_what_it_is_for(capsys):
    assert status([]) == status(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(f"\n  {name} " in said for name in COMMANDS)
    for name in COMMANDS:
        assert status([name, "--help"]) == 0
        assert capsys.readouterr().out.startswith(f"Usage: flashspec {name}")


def walk(command, *words):
    yield words, command
    for name in command.list_commands(click.Context(command)) if isinstance(command, click.Group) else ():
        yield from walk(command.get_command(click.Context(command), name), *words, name)


EVERY = dict(walk(group))
KINDS = [*(("run", name, found.params) for name, found in EXPERIMENTS.items()), ("plan", Question)]
KINDS += [("generate", Method), ("generate", Sampling), ("trace", "record", Sampling), ("trace", "replay", Method)]


def accepted(kind):
    """The names that each field of a type takes, as its own refusal lists them."""
    for name in hints(kind).keys() - {"draft"}:  # a kind of draft there, a model on the command line
        try:
            parse(kind, {name: "no such thing"})
        except ValueError as error:
            if found := re.search(r"(?:among|one of|known:) ([\w.]+(?:, [\w.]+)+)", str(error)):
                yield name, found[1].removesuffix(", got").split(", ")


def unexplained(command, choices):
    """Options without a sentence that explains them, and those whose help lacks a name that they take."""
    options = [each for each in command.params if isinstance(each, click.Option)]
    told = {each.name: " ".join((each.help or "", *getattr(each.type, "choices", ()))) for each in options}
    bare = {name for name, text in told.items() if len(text.split()) < 2}
    words = {name: {*re.split(r"[\[\] ,;:()]+|\.(?= |$)", text)} for name, text in told.items()}
    return bare | {name for name, names in choices if name in told and not {*names} <= words[name]}


@pytest.mark.parametrize("words", EVERY, ids=" ".join)
def test_every_option_is_explained_with_what_it_takes(words):
    command, lists = EVERY[words], [each for *where, kind in KINDS if tuple(where) == words for each in accepted(kind)]
    assert command.help and unexplained(command, lists) == set()
    mute = click.Option(["--mute"])
    assert unexplained(click.Command("x", params=[mute]), []) == {"mute"}
    rule = click.Option(["--rule"], help="Coupling or another rule.")
    assert unexplained(click.Command("x", params=[rule]), [("rule", RULES)]) == {"rule"}


SAME_TEXT = [
    *(f"--method {name}" for name in ("dense", "self_speculation", "hispec", "hispec_flash", "hispec_adaptive", "lookup")),
    "--method flash --probes 4", "--method hispec_typical", "--method cascade --draft {draft},{draft}",
    "--method hispec --exits 1,3 --k 3 --interval 5", "--method self_speculation --k 6 --draft-doubt 0.2",
    "--method hispec --draft-doubt 0.3 --verify-doubt 0.3", "--method dense --head int8",
    "--method dense --head in_context --shortlist 9",
]  # fmt: skip


@pytest.fixture(scope="module")
def plain():
    return {}


@pytest.mark.parametrize("options", SAME_TEXT)
def test_every_method_streams_plain_decodings_text_and_ends_with_its_counts(write, plain, capsys, options):
    if not plain:
        said = write(capsys, "--method baseline")
        plain["text"] = said.out
        assert "acceptance" not in said.err
    said = write(capsys, options)
    assert said.out == plain["text"]
    assert re.search(r"20 tokens in [\d.]+ s, [\d.]+ tokens/s; .*target forwards", said.err)
    assert "acceptance" in said.err or any(word in options for word in ("doubt", "adaptive", "lookup"))  # may propose nothing


def test_compare_ends_with_both_speeds_their_ratio_and_whether_the_texts_are_equal(write, capsys):
    said = write(capsys, "--method dense --k 3 --compare")
    *_, heads, ours, plain, ratio, machine = said.err.splitlines()
    assert heads.split() == ["tokens", "seconds", "tokens/s"] and "this decoding" in ours and "plain decoding" in plain
    assert said.out == write(capsys, "--method baseline").out and ratio.endswith("the texts are equal")
    assert "cores before the run" in machine
    rates = [float(line.split()[-1]) for line in (ours, plain)]
    found, word = re.match(r"([\d.]+)x (faster|slower) than plain", ratio).groups()
    assert float(found) == pytest.approx(max(rates) / min(rates), abs=0.02) and (word == "faster") == (rates[0] >= rates[1])


def test_a_text_that_differs_from_plain_decodings_is_told_with_its_place():
    runs = ([5, 6, 7, 8], 2.0), ([5, 6, 9, 8], 1.0)
    done, plain = (cli_generate.Done(tokens, count([], 4, 1), seconds) for tokens, seconds in runs)
    *_, last, machine = cli_generate.comparison(done, plain, 1e3)
    assert machine.startswith("this machine is busy")
    assert last == "2.00x slower than plain decoding, in one run of each on this prompt; the texts differ from token 3 on"


@pytest.mark.parametrize("method", ["hispec_typical", "hispec"])
def test_a_lossy_method_says_so_and_an_exact_one_does_not(write, capsys, method):
    said = write(capsys, f"--temperature 1 --rule speculative --method {method}").err
    assert ("lossy: the text need not follow the target's own law" in said) == (method == "hispec_typical")


def test_show_colours_and_ids_are_a_prompt_too(write, capsys):
    said = write(capsys, "--ids 3,1,4 --method dense --show", prompt="")
    assert "\x1b[32m" in said.out or "\x1b[31m" in said.out
    assert "accepted" in said.err and "bonus" in said.err


def test_an_experiment_runs_with_its_fields_as_flags(toy, capsys):
    assert status(["run", "toy", "--k", "7", *toy]) == 0
    said = capsys.readouterr()
    assert re.search(r"7\s+0\.5", said.out) and "1 rows in" in said.err
    assert status(["run", "toy", "--help"]) == 0
    assert "--k INTEGER Tokens a check. [default: 4]" in " ".join(capsys.readouterr().out.split())


def test_a_preset_runs_in_every_experiment(toy, capsys):
    assert status(["run", "--preset", "smoke", *toy]) == 0
    assert re.search(r"1\s+0\.5", capsys.readouterr().out)


def test_list_and_doctor_report(capsys):
    assert status(["list"]) == status(["doctor"]) == 0
    said = capsys.readouterr().out
    listed = ("experiments:", "flash", "--draft", "processor", "bfloat16", "threads", "C compiler", "faiss")
    assert all(word in said for word in listed)
