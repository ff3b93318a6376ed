"""The command line says what it does, and counts what it did."""

import re
from dataclasses import dataclass

import click
import pytest

from flashspec.cli import generate as cli_generate
from flashspec.cli.main import COMMANDS, group
from flashspec.decoding.generate import count
from flashspec.decoding.method import Method
from flashspec.measure.planning import Question
from flashspec.parameters import hints, parse
from flashspec.sampling import RULES, Sampling
from flashspec.study import EXPERIMENTS, Experiment


@dataclass(frozen=True)
class Params:
    k: int = 4  # tokens a check
    names: tuple[str, ...] = ("a", "b")


@dataclass(frozen=True)
class Row:
    k: int
    time: float


@pytest.fixture
def write(folders, cli):
    """Write with a target and its draft; what it wrote, as `out` and `err`."""
    pair = ["--target", folders["target"], "--draft", folders["draft"], "--max-new-tokens", "20"]
    return lambda options, *prompt: cli("generate", *(prompt or ["def f(x):"]), *pair, *options.format(**folders).split())


@pytest.fixture
def toy(tmp_path):
    made = Experiment("toy", Params, Row, lambda params: [Row(params.k, 0.5)], measured=False, presets={"smoke": Params(k=1)})
    known = dict(EXPERIMENTS)
    EXPERIMENTS.clear()
    EXPERIMENTS["toy"] = made
    yield ["--results", str(tmp_path / "results")]
    EXPERIMENTS.clear()
    EXPERIMENTS.update(known)  # in their order


def test_every_command_says_what_it_is_for(cli):
    assert all(f"\n  {name} " in said for name in COMMANDS for said in (cli().out, cli("--help").out))
    assert all(cli(name, "--help").out.startswith(f"Usage: flashspec {name}") for name in COMMANDS)


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


PLAIN = {}  # decoding, once


@pytest.mark.parametrize("options", SAME_TEXT)
def test_every_method_streams_plain_decodings_text_and_ends_with_its_counts(write, options):
    plain = PLAIN.setdefault(0, PLAIN.get(0) or write("--method baseline"))
    said = write(options)
    assert said.out == plain.out and "accepted" not in plain.err
    assert re.search(r"20 tokens in [\d.]+ s, [\d.]+ tokens/s; .*target forwards", said.err)
    assert "share accepted" in said.err or any(word in options for word in ("doubt", "adaptive", "lookup"))  # may propose nothing


def test_compare_ends_with_both_speeds_their_ratio_and_whether_the_texts_are_equal(write):
    said = write("--method dense --k 3 --compare")
    *_, heads, ours, plain, ratio, machine = said.err.splitlines()
    assert heads.split() == ["tokens", "seconds", "tokens/s"] and "this decoding" in ours and "plain decoding" in plain
    assert said.out == write("--method baseline").out and ratio.endswith("the texts are equal")
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
def test_a_lossy_method_says_so_and_an_exact_one_does_not(write, method):
    said = write(f"--temperature 1 --rule speculative --method {method}").err
    assert ("lossy: with this method and rule the text may not follow" in said) == (method == "hispec_typical")


def test_show_colours_and_ids_are_a_prompt_too(write):
    said = write("--method dense --show", "--ids", "3,1,4")
    assert "\x1b[32m" in said.out or "\x1b[31m" in said.out
    assert "accepted" in said.err and "bonus" in said.err


def test_an_experiment_runs_with_its_fields_as_flags_and_a_preset_in_every_one(toy, cli):
    said = cli("run", "toy", "--k", "7", *toy)
    assert re.search(r"7\s+0\.5", said.out) and "1 rows in" in said.err
    assert "--k INTEGER Tokens a check. [default: 4]" in " ".join(cli("run", "toy", "--help").out.split())
    assert re.search(r"1\s+0\.5", cli("run", "--preset", "smoke", *toy).out)


def test_list_and_doctor_report(cli):
    said = cli("list").out + cli("doctor").out
    listed = ("experiments:", "flash", "--draft", "processor", "bfloat16", "threads", "C compiler", "faiss")
    assert all(word in said for word in listed)
