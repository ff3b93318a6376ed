"""Whatever is wrong with a command line: one sentence, status 2, and every file and folder as it was."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from contextlib import contextmanager

import pytest
import shelf
import tiny

from flashspec.cli import listing as cli_listing
from flashspec.cli.main import status
from flashspec.decoding.models import SHIPPED
from flashspec.models.writing import UNFINISHED, copy_checkpoint, fresh_folder, new_file, replaced
from flashspec.refusals import in_words

DEEP = "[" * 100_000 + "]" * 100_000
TOLD = {"kind": "code", "prompt": [1, 2], "tokens": [3], "chances": [1.0]}
SAMPLING = {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "seed": 0, "rule": "coupling"}
TRACE = {"format": 1, "target": "", "parameters": 10**9, "sampling": SAMPLING, "told": [TOLD], "words": {}}
PROMPTS = {
    "list": "[]", "no_key": "{}", "number": '{"prompts": 3}', "null": '{"prompts": null}', "empty": '{"prompts": []}',
    "entry": '{"prompts": ["x"]}', "kind": '{"prompts": [{"kind": 3, "ids": [1]}]}', "no_ids": '{"prompts": [{"kind": "a"}]}',
    "ids_text": '{"prompts": [{"kind": "a", "ids": "12"}]}', "ids_half": '{"prompts": [{"kind": "a", "ids": [1.5]}]}',
    "ids_below": '{"prompts": [{"kind": "a", "ids": [-1]}]}', "text": '{"prompts": [{"kind": "a", "ids": [1], "text": 3}]}',
    "ids_above": '{"prompts": [{"kind": "a", "ids": [99999999]}]}', "ids_none": '{"prompts": [{"kind": "a", "ids": []}]}',
    "deep": DEEP, "deep_inside": f'{{"prompts": {DEEP}}}', "cut": '{"prompts": [', "nothing": "",
}  # fmt: skip
TRACES = {
    "list": [], "format": {**TRACE, "format": "1"}, "later": {**TRACE, "format": 2}, "no_target": {"format": 1},
    "told": {**TRACE, "told": "x"}, "told_none": {**TRACE, "told": []}, "tokens": {**TRACE, "told": [{**TOLD, "tokens": ["a"]}]},
    "chances": {**TRACE, "told": [{**TOLD, "chances": []}]}, "words": {**TRACE, "words": {"a": "b"}},
    "sampling": {**TRACE, "sampling": {**SAMPLING, "temperature": "hot"}},
    "rule": {**TRACE, "sampling": {**SAMPLING, "rule": "x"}},
    "no_prompt": {**TRACE, "told": [{**TOLD, "prompt": []}]}, "above": {**TRACE, "told": [{**TOLD, "tokens": [10**6]}]},
    "below": {**TRACE, "told": [{**TOLD, "tokens": [-1]}]}, "huge": {**TRACE, "told": [{**TOLD, "tokens": [2**70]}]},
}  # fmt: skip
GENERATE = "generate x --target {target} --draft-model {draft}"
DESIGN = "draft design --target {target} --text {home}/text.txt --length 16 --prompt 4 --written 2 --steps 1"
RECORD = "trace record {home}/new.json --target {target} --prompts {home}/prompts.json"
PLAN = "plan --target {target} --draft {draft} --prompts {home}/prompts.json"
TIMES = "plan --acceptance 0.5 --times"
EXITS = "train exits --model {target} --text {home}/text.txt --exit-steps 1"
RANK = "draft rank --draft {draft} --text {home}/text.txt"

LINES = f"""
frob
generate
{GENERATE} --max-new-tokens 0
{GENERATE} --max-new-tokens -1
{GENERATE} --max-new-tokens 1.5
{GENERATE} --k 0
{GENERATE} --k nan
{GENERATE} --k 99999999999999999999
{GENERATE} --temperature hot
{GENERATE} --temperature nan
{GENERATE} --temperature inf
{GENERATE} --temperature 1e999
{GENERATE} --top-p nan
{GENERATE} --seed 1e400
{GENERATE} --probes 0
{GENERATE} --exits 99 --method self_speculation
{GENERATE} --device moon
{GENERATE} --system hello
generate --ids [[[ --target {{target}}
generate --ids {"(" * 300} --target {{target}}
generate --ids 1,2 --target ~nobody_such/model
generate --ids 1,2 --target {{home}}/text.txt
generate --ids 1,2 --target {{target}} --draft-model {{home}}/text.txt/below
{DESIGN} --out {{target}}
{DESIGN} --out {{target}}/below
{DESIGN} --out {{home}}
{DESIGN} --out {{draft}}
{DESIGN} --out {{home}}/link
{DESIGN} --out {{home}}/text.txt
{DESIGN} --out {{home}}/text.txt/below
{DESIGN} --out ~nobody_such/draft
{DESIGN} --out {{home}}/new --k 0
{DESIGN} --out {{home}}/new --k -1
{DESIGN} --out {{home}}/new --layers 0
{DESIGN} --out {{home}}/new --layers 99
{DESIGN} --out {{home}}/new --heads -1
{DESIGN} --out {{home}}/new --heads 3
{DESIGN} --out {{home}}/new --length 99999
{DESIGN} --out {{home}}/new --steps -1
{DESIGN} --out {{home}}/new --save-every 0
{DESIGN} --out {{home}}/new --warmup -1
{DESIGN} --out {{home}}/new --muon-lr nan
{DESIGN} --out {{home}}/new --muon-lr -1
{DESIGN} --out {{home}}/new --variation inf
{DESIGN} --out {{home}}/new --seed -1
{DESIGN} --out {{home}}/new --seed 9223372036854775807
{DESIGN} --out {{home}}/new --dtype int7
{DESIGN} --out {{home}}/new --work {{target}}
{DESIGN} --out {{home}}/new --work {{target}}/work
{DESIGN} --out {{home}}/new --work {{home}}/new
{DESIGN} --out {{home}}/new --work {{home}}/notes
{DESIGN} --out {{home}}/new --work {{home}}/text.txt
draft design --target {{target}} --out {{home}}/new --text {{home}}/bytes.txt
draft design --target {{target}} --out {{home}}/new --text {{home}}
draft design --target {{target}} --out {{home}}/new --text {{home}}/short.txt --length 16 --prompt 4
{RANK}
{RANK} --out {{draft}}
{RANK} --out {{draft}}/below
{RANK} --out {{home}}/notes
{RANK} --out {{home}}/text.txt/below
{RANK} --out {{home}}/new --head flash
draft rank --draft {{draft}} --out {{home}}/new --text {{home}}/bytes.txt
draft ship {{home}}/notes --shelf {{home}}
draft ship {{draft}} --target {{target}} --shelf {{draft}} --text {{home}}/text.txt
draft ship {{draft}} --target {{target}} --shelf {{home}}/new --k 0
draft family wide-1 --folder {SHIPPED}/target --text {{home}}/text.txt
draft family wide-1 --folder {{home}}/text.txt --text {{home}}/text.txt
draft family wide-1 --folder {{home}}/new --target {{target}} --text {{home}}/text.txt
draft family wide-9
draft record --folder {{home}}/points --out {{home}}/points --target {{target}} --prompts {{home}}/prompts.json
draft record --folder {{home}}/points --out {{home}}/taken --target {{target}} --prompts {{home}}/prompts.json
draft record --folder {{home}}/points --out {{home}}/new --new-tokens 0
{EXITS}
{EXITS} --out {{target}}
{EXITS} --out {{target}}/below
{EXITS} --out {{home}}/text.txt/below
{EXITS} --out {{home}}/new --exits 0
{EXITS} --out {{home}}/new --exits 1,99
{EXITS} --out {{home}}/new --exits 2,1
{EXITS} --out {{home}}/new --rank 0
{EXITS} --out {{home}}/new --exit-steps 0
{EXITS} --out {{home}}/new --exit-steps 99999999999999999999
{EXITS} --out {{home}}/new --rank 99999999999999999999
train exits --model {{target}} --out {{home}}/new --text {{home}}/bytes.txt
train exits --model {{target}} --out {{home}}/new --text {{home}}
train target --folder {{target}}
train target --folder {{home}}
train target --folder {SHIPPED.parent}
train all --folder {SHIPPED}/mine
train target --folder {{home}}/text.txt
train target --folder {{home}}/new --branch {{home}}/nowhere.pt
train target --folder {{home}}/new --steps 0 --branch {{home}}/text.txt
quantize {{target}} {{target}} --text {{home}}/text.txt
quantize {{target}} {{target}}/below --text {{home}}/text.txt
quantize {{target}} {{home}}/notes --text {{home}}/text.txt
quantize {{target}} {{home}}/text.txt/below --text {{home}}/text.txt
quantize {{target}} {{home}}/new --text {{home}}/nowhere.txt
quantize {{target}} {{home}}/new --text {{home}}/bytes.txt
quantize {{target}} {{home}}/new --text {{home}}/text.txt --blocks 0
quantize {{target}} {{home}}/new --text {{home}}/text.txt --group-size 7
quantize {{target}} {{home}}/new --text {{home}}
quantize {{home}}/nowhere {{home}}/new --text {{home}}/text.txt
{RECORD} --per-kind 0
{RECORD} --per-kind -1
{RECORD} --new-tokens 0
{RECORD} --temperature nan
{RECORD} --rule typical --temperature 1
trace record {{home}}/notes --target {{target}}
trace record {{target}}/trace.json --target {{target}}
trace record {{draft}}/trace.json --target {{target}}
trace record {{target}}/config.json --target {{target}}
trace record {{home}}/text.txt --target {{target}}
trace record {{home}}/text.txt/below --target {{target}}
trace record {{home}}/new.json --target {{target}} --prompts {{home}}
trace record {{home}}/new.json --target {{target}} --prompts {{home}}/nowhere.json
trace replay {{home}}/nowhere.json
trace replay {{home}}
trace replay {{home}}/traces/list.json --ks 0
trace replay {{home}}/traces/list.json --ks ,
{PLAN} --per-kind 0
{PLAN} --per-kind -1
{PLAN} --repeats 0
{PLAN} --new-tokens nan
{PLAN} --max-k 0
{PLAN} --temperature inf
{PLAN} --acceptance nan
{PLAN} --acceptance ,
{PLAN} --acceptance {"[" * 5000}
plan heads --k 0
plan --prompts {{home}}/nowhere.json
{TIMES} step=nan,draft=1,check=1
{TIMES} step=inf,draft=1,check=1
{TIMES} step=-1,draft=1,check=1
{TIMES} step
{TIMES} =
{TIMES} step=1,draft=1,check=1,sleep=1
run acceptance --per-kind 0 --fresh --results {{home}}/new
run acceptance --per-kind -1 --fresh --results {{home}}/new
run acceptance --temperatures hot --results {{home}}/new
run acceptance --temperatures nan --results {{home}}/new
run nothing
run race --preset smoke --target , --results {{home}}/new
run projection --repeats 0 --fresh --results {{home}}/new
run projection --preset smoke --fresh --results {{home}}/text.txt
run projection --preset smoke --fresh --results {{target}}
run projection --preset smoke --fresh --results ~nobody_such/results
doctor now
list all
""".strip().splitlines()


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Models, texts, prompts and traces, good and bad."""
    home = tmp_path_factory.mktemp("home")
    pair = shelf.write_pair(home)
    tiny.prompts_file(home)
    (home / "text.txt").write_text("def design(out, work):\n    return out\n" * 400)
    (home / "short.txt").write_text("x")
    (home / "bytes.txt").write_bytes(b"caf\xe9 " * 3000)
    (home / "link").symlink_to(pair["target"])
    for folder in ("notes", "taken/draft"):
        (home / folder).mkdir(parents=True)
        (home / folder / "mine.txt").write_text("keep me")
    shutil.copytree(pair["draft"], home / "points" / "draft")
    for folder, files in {"prompts": PROMPTS, "traces": {name: json.dumps(value) for name, value in TRACES.items()}}.items():
        (home / folder).mkdir()
        for name, text in files.items():
            (home / folder / f"{name}.json").write_text(text)
    (home / "prompts" / "bytes.json").write_bytes(b'{"prompts": "\xff"}')
    return home


def words(home, line):
    return [word.format(home=home, target=home / "target", draft=home / "draft") for word in line.split()]


def refused(home, capsys, call):
    """The sentence of a call that must be refused and must leave everything as it was."""
    before, shipped = shelf.listing(home), sorted(SHIPPED.parent.rglob("*.safetensors"))
    capsys.readouterr()
    assert call() == 2
    said = capsys.readouterr().err
    assert shelf.listing(home) == before and sorted(SHIPPED.parent.rglob("*.safetensors")) == shipped
    last = said.rpartition("\r")[2].rpartition("\x1b[A")[2].lstrip("\n")
    assert last.startswith("error: ") and last.count("\n") == 1 and len(last) > 20, said
    assert "Traceback" not in said and "defect" not in said
    return last


@pytest.mark.parametrize("line", LINES, ids=lambda line: line[:90])
def test_a_bad_line_is_one_sentence_and_changes_nothing(home, capsys, line):
    refused(home, capsys, lambda: status(words(home, line)))


def test_a_measurement_without_a_row_leaves_nothing(home, capsys):
    before = shelf.listing(home)
    assert status(words(home, "run recall --preset smoke --head , --metric , --fresh --results {home}/new")) == 2
    assert "\nerror: these parameters of recall leave nothing to measure" in "\n" + capsys.readouterr().err
    assert shelf.listing(home) == before


@pytest.mark.parametrize("name", [*PROMPTS, "bytes"])
def test_prompts_of_another_shape_are_one_sentence(home, capsys, name):
    line = f"trace record {{home}}/new.json --target {{target}} --new-tokens 2 --prompts {{home}}/prompts/{name}.json"
    refused(home, capsys, lambda: status(words(home, line)))


@pytest.mark.parametrize("name", TRACES)
def test_a_trace_of_another_shape_is_one_sentence(home, capsys, name):
    refused(home, capsys, lambda: status(words(home, f"trace replay {{home}}/traces/{name}.json --draft {{draft}}")))


@pytest.mark.parametrize("text", ["caf\udce9", "\ud800"])
@pytest.mark.parametrize("place", ["prompt", "system"])
def test_a_text_that_is_not_utf8_is_one_sentence(home, capsys, text, place):
    given = [text] if place == "prompt" else ["x", "--chat", "--system", text]
    line = words(home, "--target {target} --draft-model {draft}")
    assert "UTF-8" in refused(home, capsys, lambda: status(["generate", *given, *line]))


@contextmanager
def full_disk(limit=2000):
    """Files can grow to `limit` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


WRITING = {
    "rank": f"{RANK} --out {{home}}/new/deep",
    "exits": f"{EXITS} --exits 1 --out {{home}}/new/deep",
    "trace": "trace record {home}/new/deep.json --target {target} --prompts {home}/prompts.json --new-tokens 250",
    "ship": "draft ship {draft} --target {target} --shelf {home}/new --text {home}/text.txt",
    "record": "draft record --folder {home}/points --out {home}/new --target {target} --prompts {home}/prompts.json",
    "run": "run projection --preset smoke --fresh --results {home}/new",
}


@pytest.mark.parametrize("name", WRITING)
def test_a_full_disk_is_one_sentence_and_leaves_nothing_half_written(home, capsys, monkeypatch, name):
    monkeypatch.setattr("flashspec.models.writing.WEIGHTS", ())  # copies, not links
    line = words(home, WRITING[name])
    with full_disk(200 if name == "run" else 2000):
        said = refused(home, capsys, lambda: status(line))
    assert "File too large" in said


def test_a_stopped_design_continues_and_its_output_is_whole_or_absent(home, tmp_path, capsys):
    """A full disk stops the run at its first checkpoint; the work folder stays and is continued, not thrown away."""
    small = "--layers 1 --ffn 32 --steps 2 --decay 1 --length 16 --written 3 --prompt 4 --sequences 2"
    line = [*words(home, f"{DESIGN} {small}"), "--out", str(tmp_path / "out")]
    before = shelf.listing(home)
    with full_disk(20_000):
        assert status(line) == 2
    assert not (tmp_path / "out").exists() and (tmp_path / "out.work" / "design.json").is_file()
    assert "defect" not in capsys.readouterr().err
    assert status(line) == 0 and (tmp_path / "out" / "digests.json").is_file()
    assert shelf.listing(home) == before
    assert not list(tmp_path.rglob(".*"))
    made = shelf.listing(tmp_path / "out")
    assert status(line) == 0 and shelf.listing(tmp_path / "out") == made
    assert status([*line, "--k", "7"]) == 2 and shelf.listing(tmp_path / "out") == made


OTHERS = {
    "notebooks over themselves": (status, "notebooks {home}/book {home}/book"),
    "one notebook over itself": (status, "notebooks {home}/book/a.ipynb {home}/book"),
    "no notebook": (status, "notebooks {home}/text.txt {home}/new"),
    "notebook of a wrong shape": (status, "notebooks {home}/traces/list.json {home}/new"),
    "notebook parameter of a wrong type": (status, "notebooks {home}/book {home}/new -p k hot"),
    "notebook's unknown home": (status, "notebooks {home}/book ~nobody_such/out"),
    "a page without places": (status, "pages {home}/text.txt"),
    "a page that is a folder": (status, "pages {home}"),
    "a page that is not UTF-8": (status, "pages {home}/bytes.txt"),
    "no minutes": (status, "gpu --stand-ins --minutes 0"),
    "minutes that are no number": (status, "gpu --stand-ins --minutes nan"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_entry_points_refuse_alike(home, capsys, name):
    book = home / "book"
    book.mkdir(exist_ok=True)
    cell = {"cell_type": "code", "metadata": {"tags": ["parameters"]}, "source": ["k: int = 4"], "outputs": []}
    (book / "a.ipynb").write_text(json.dumps({"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
    main, line = OTHERS[name]
    refused(home, capsys, lambda: main(words(home, line)))


@pytest.mark.parametrize("error", [KeyError("x"), RuntimeError("two\nlines"), AttributeError("'int' has no"), AssertionError()])
def test_the_control_an_unexpected_exception_is_a_sentence_too(capsys, monkeypatch, error):
    def broken(*_):
        raise error

    monkeypatch.setattr(cli_listing, "_words", broken)
    assert status(["list"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: flashspec has a defect here: {type(error).__name__}: ") and said.count("\n") == 1
    assert "FLASHSPEC_TRACEBACK=1" in said
    monkeypatch.setenv("FLASHSPEC_TRACEBACK", "1")
    with pytest.raises(type(error)):
        status(["list"])


@pytest.mark.parametrize(("error", "word"), [
    (MemoryError(), "not enough memory"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "not enough memory"),
    (RecursionError("maximum recursion depth"), "nested too deeply"),
    (OSError(28, "No space left on device", "a/b"), "cannot use a/b: No space left on device"),
    (Exception("I/O error: No space left on device (os error 28)"), "could not be read or written"),
    (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), "not UTF-8"),
])  # fmt: skip
def test_what_the_system_refuses_is_no_defect(error, word):
    assert word in in_words(error) and "defect" not in in_words(error)


def test_the_control_a_half_written_file_is_caught(home, capsys, monkeypatch):
    def careless(*_):
        (home / "notes" / "half").write_text("x")
        raise ValueError("a sentence that is long enough to be one")

    monkeypatch.setattr(cli_listing, "_words", careless)
    try:
        with pytest.raises(AssertionError):
            refused(home, capsys, lambda: status(["list"]))
    finally:
        (home / "notes" / "half").unlink()


def test_an_interrupt_is_status_130_without_a_traceback(capsys, monkeypatch):
    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli_listing, "_words", stopped)
    assert status(["list"]) == 130
    assert capsys.readouterr().err.strip() == "stopped"


@pytest.mark.parametrize(("shell", "code", "said"), [
    ("{run} list | head -1 > /dev/null; exit ${{PIPESTATUS[0]}}", (0, 1), r""),
    ("{run} list > /dev/full", (2,), "error: cannot use a file: No space left on device"),
    ("PYTHONIOENCODING=ascii {run} generate --target {target} --draft-model {draft} --max-new-tokens 60 é > /dev/null", (0,), ""),
    ("printf '\\xff' | {run} generate --target {target} --draft-model {draft} -", (2,), "error: the prompt is not UTF-8"),
    ("env -u HOME {run} generate --target '~/model' --ids 1", (2,), "error: no model at"),
])  # fmt: skip
def test_the_console_script_meets_pipes_disks_and_encodings(home, shell, code, said):
    run = f"{sys.executable} -m flashspec.cli.main"
    line = shell.format(run=run, target=home / "target", draft=home / "draft")
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode in code and said in done.stderr, done
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    with pytest.raises(KeyboardInterrupt), fresh_folder(tmp_path / "a" / "b") as part:
        (part / "half").write_text("x")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "a").mkdir()
    left = tmp_path / "a" / f".b{UNFINISHED}"  # what kill -9 leaves
    left.mkdir()
    (left / "half").write_text("x")
    with fresh_folder(tmp_path / "a" / "b") as part:
        (part / "whole").write_text("x")
    assert shelf.listing(tmp_path) == {"a/b/whole": shelf.digest(tmp_path / "a" / "b" / "whole")}


@pytest.mark.parametrize("write", [replaced, new_file])
def test_a_file_appears_whole_or_not_at_all(tmp_path, write):
    path = tmp_path / "file"
    with pytest.raises(KeyboardInterrupt), write(path) as part:
        part.write_text("half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    with write(path) as part:
        part.write_text("whole")
    assert path.read_text() == "whole" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("hidden", [".git/HEAD", ".notes", ".new.part/mine"])
def test_what_is_hidden_is_no_less_its_owners(tmp_path, hidden):
    taken, beside = tmp_path / "taken" / hidden, tmp_path / hidden
    for path in (taken, beside):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("keep me")
    with pytest.raises(FileExistsError, match="holds files already"), fresh_folder(tmp_path / "taken"):
        pass
    with fresh_folder(tmp_path / "new") as part:
        (part / "whole").write_text("x")
    assert taken.read_text() == beside.read_text() == "keep me" and (tmp_path / "new" / "whole").exists()


def test_what_somebody_puts_there_meanwhile_is_kept(tmp_path):
    with pytest.raises(FileExistsError, match="holds files already"), fresh_folder(tmp_path / "new"):
        (tmp_path / "new").mkdir()
        (tmp_path / "new" / "mine").write_text("keep me")
    assert shelf.listing(tmp_path) == {"new/mine": shelf.digest(tmp_path / "new" / "mine")}


def test_a_link_under_a_temporary_name_is_not_followed(tmp_path):
    (tmp_path / "mine").write_text("keep me")
    (tmp_path / f".file{UNFINISHED}").symlink_to("mine")
    with replaced(tmp_path / "file") as part:
        part.write_text("x")
    assert (tmp_path / "mine").read_text() == "keep me"


def test_only_a_record_of_ours_is_replaced(tmp_path):
    out = tmp_path / "record"
    out.mkdir()
    (out / "proposals.json").write_text("{}")
    with fresh_folder(out, ours="proposals.json") as part:
        (part / "proposals.json").write_text("[]")
    assert (out / "proposals.json").read_text() == "[]"
    (out / "model.gguf").write_text("weights")
    for ours in ("", "proposals.json"):
        with pytest.raises(FileExistsError, match="holds files already"), fresh_folder(out, ours=ours):
            pass


def test_a_copy_shares_the_weights_and_nothing_else(home, tmp_path):
    copy_checkpoint(home / "link", tmp_path)
    assert shelf.listing(tmp_path) == shelf.listing(home / "target")
    assert {path.name for path in tmp_path.iterdir() if path.stat().st_nlink > 1} <= {"model.safetensors"}
    (tmp_path / "config.json").write_text("{}")
    assert (home / "target" / "config.json").read_text() != "{}"
