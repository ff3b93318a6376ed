"""Whatever is wrong with a command line: one sentence, status 2, and every file and folder as it was."""

import json
import os
import re
import resource
import subprocess
import sys
from contextlib import contextmanager

import pytest
import shelf
from trouble import ipynb

from flashspec.cli import study as cli_study
from flashspec.cli.main import status
from flashspec.decoding.models import SHIPPED
from flashspec.refusals import in_words

DEEP = "[" * 100_000 + "]" * 100_000
TOLD = {"kind": "code", "prompt": [1, 2], "tokens": [3], "chances": [1.0]}
SAMPLING = {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "seed": 0, "rule": "coupling"}
TRACE = {"format": 1, "target": "", "parameters": 10**9, "sampling": SAMPLING, "told": [TOLD], "words": {}}
PROMPTS = {
    "empty": '{"prompts": []}', "deep": f'{{"prompts": {DEEP}}}', "ids_none": '{"prompts": [{"kind": "a", "ids": []}]}',
    "ids_above": '{"prompts": [{"kind": "a", "ids": [99999999]}]}',
}  # fmt: skip
TRACES = {
    "list": [], "later": {**TRACE, "format": 2}, "told_none": {**TRACE, "told": []},
    "no_prompt": {**TRACE, "told": [{**TOLD, "prompt": []}]}, "above": {**TRACE, "told": [{**TOLD, "tokens": [10**6]}]},
}  # fmt: skip
NEW = " --out {home}/new"
DESIGN = "draft design --target {target} TEXT --length 16 --prompt 4 --written 2 --steps 1"
EXITS = "train exits --target {target} TEXT --steps 1"
RANK = "draft rank --draft {draft} TEXT"
HUGE = "99999999999999999999"
PLACES = {"parens": "(" * 300, "brackets": "[" * 1500, "shipped": SHIPPED, "package": SHIPPED.parent}
CASES = {  # a command's beginning, and ends that make it wrong => words of the sentence that says so
    "":
        "frob => No such command | generate => give a prompt | doctor now | list all | run race --kk 3 => No such option | "
        "run race --preset grand => it has: | train exits => Missing option '--target' | train --rank 4 => No such option | "
        "generate --ids 1,x => 'ids' expects | draft family wide-9 => the family has no 'wide-9' | fetch nobody => smollm2 | "
        "generate --ids 1,2 --chat => --system with --chat | generate x --system brief => --system with --chat",
    "generate x --target {target} --draft {draft}":
        f"--max-new-tokens 1.5 | --k 0 | --k {HUGE} | --temperature nan | --seed 1e400 | --exits 99 --method self_speculation | "
        "--device moon | --system hello | --ids 1 => give a prompt | --tmperature 1 => --temperature | "
        "--k many => 'k' expects a whole number | --top-p 1.5 => top_p | --method magic => 'baseline' | "
        "--method dense --head best => in_context",
    DESIGN:
        "--out {target} | --out {target}/below | --out {home} | --out {draft} | --out {home}/link | --out {home}/text.txt | "
        "--out {home}/text.txt/below | --out ~nobody_such/draft",
    DESIGN + NEW:
        "--work {home}/text.txt | --work {home}/notes | --k 0 | --layers 99 | --heads 3 | --length 99999 | "
        "--length 8 --prompt 9 => no room for a prompt | --steps -1 | --save-every 0 | --muon-lr nan | --variation inf | "
        "--seed 9223372036854775807 | --dtype half => dtype must be one of float32, bfloat16, got 'half' | "
        "--work {target} | --work {target}/work | --work {home}/new",
    RANK:
        "| --out {draft} | --out {draft}/below | --out {home}/notes | --out {home}/text.txt/below | "
        "--out {home}/new --head flash",
    EXITS: "| --out {target} | --out {target}/below | --out {home}/text.txt/below",
    EXITS + NEW: f"--exits 0 | --exits 1,99 | --exits 2,1 | --rank 0 | --steps 0 | --steps {HUGE} | --rank {HUGE}",
    "trace record {home}/new.json --target {target} PROMPTS": "--per-kind 0 | --rule typical --temperature 1",
    "plan --acceptance 0.5 --times": "step=nan,draft=1,check=1 | step | step=1,draft=1,check=1,sleep=1",
    "generate --target {target} --ids": "[[[ | 1,2 --draft {home}/text.txt/below",
    "generate --ids 1,2 --target": "~nobody_such/model | {home}/text.txt | /nowhere/at/all => no model at",
    "draft design --target {target} --out {home}/new --text":
        "{home}/bytes.txt | {home} | {home}/short.txt --length 16 --prompt 4",
    "draft rank --draft {draft}": "--out {home}/new --text {home}/bytes.txt",
    "draft family wide-1 TEXT --folder": "{shipped}/target | {home}/text.txt | {home}/new --target {target}",
    "train exits --target {target} --out {home}/new --text": "{home}/bytes.txt | {home}",
    "train --folder": "{target} | {home} | {package} | {shipped}/mine | {home}/text.txt",
    "quantize":
        "{target} {target} TEXT | {target} {target}/below TEXT | {target} {home}/notes TEXT | {home}/nowhere {home}/new TEXT | "
        "{target} {home}/text.txt/below TEXT",
    "quantize {target} {home}/new --text":
        "{home}/nowhere.txt | {home}/bytes.txt | {home}/text.txt --blocks 0 | {home}/text.txt --group-size 7 | {home}",
    "trace record --target {target}":
        "{home}/notes | {target}/trace.json | {draft}/trace.json | {target}/config.json | {home}/text.txt | "
        "{home}/text.txt/below",
    "trace record {home}/new.json --target {target} --new-tokens 2 --prompts":
        "{home} | {home}/nowhere.json | " + " | ".join(f"{{home}}/prompts/{name}.json" for name in PROMPTS),
    "trace replay --draft {draft}": " | ".join(f"{{home}}/traces/{name}.json" for name in TRACES),
    "trace replay": "{home}/nowhere.json | {home} | {home}/traces/list.json --k 0 | {home}/traces/list.json --k , | "
        "{home}/nowhere.json --ks 1 => No such option",
    "plan": "heads --k 0 | --prompts {home}/nowhere.json | --k 2 => --k goes with `plan heads` | "
        "--times step=60,draft=6.69,check=60 => --acceptance | --target qwen3-32b --draft qwen3-0.6b => --acceptance | "
        "--target qwen3-32b --draft reference --acceptance 0.8 => two shapes | "
        "heads --target opt-66b --draft opt-125m --acceptance 0.5 => nothing about heads | "
        "--head dense,flash --target opt-66b --draft opt-125m --acceptance 0.5 => nothing about heads | "
        "--target qwen3-32b --acceptance 0.8 => no draft belongs to 'qwen3-32b' by name: give --draft",
    "run --results {home}/new":
        "nothing => unknown experiment 'nothing' | race --preset smoke --target , | "
        "recall --preset smoke --head , --cluster-size , --fresh",
    "run projection --fresh": "--repeats 0 --results {home}/new",
    "run projection --preset smoke --fresh --results": "{home}/text.txt | {target} | ~nobody_such/results",
    "notebooks {home}/book": "{home}/book | {home}/new -p k hot | ~nobody_such/out",
    "notebooks": "{home}/book/a.ipynb {home}/book | {home}/text.txt {home}/new | {home}/traces/list.json {home}/new",
    "sweep":
        "nothing => unknown experiment 'nothing' | a:b => No module named 'a' | os:path => names no Experiment | : | "
        "{home}/nowhere.ipynb => no notebook | {home}/book/a.ipynb -p kk=1 => did you mean 'k' | {home}/book/a.ipynb -p k=x",
    "sweep exits":
        "-p dept=1 => did you mean 'depth' | -p depth => NAME=VALUES | -p depth= => no values | -p depth=1..99999 | "
        "-p depth=[1 | -p depth=1 -p depth=2 => twice | -p depth=x => 'depth' expects | --grid {home}/text.txt => unknown | "
        "--grid {home}/bytes.txt | --grid {home}/traces/list.json | -p target={home}/notes => no model at | "
        "-p depth={brackets} | -p depth={parens} | --engine dask => --scheduler | "
        "--scheduler tcp://127.0.0.1:1 => --engine dask | --timeout nan | --timeout 0 | --sample 0 | --workers 0 | "
        "--seed x | --out ~nobody_such/out",
    "pages": "{home}/text.txt | {home} | {home}/bytes.txt",
}  # fmt: skip
LINES = [f"{start} {end}".strip() for start, ends in CASES.items() for end in map(str.strip, ends.split("|"))]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    pair = shelf.write_pair(home)
    shelf.prompts_file(home)
    (home / "text.txt").write_text("def design(out, work):\n    return out\n" * 400)
    (home / "short.txt").write_text("x")
    (home / "bytes.txt").write_bytes(b"caf\xe9 " * 3000)
    (home / "link").symlink_to(pair["target"])
    ipynb(home / "book" / "a.ipynb", "k: int = 4")
    (home / "notes").mkdir()
    (home / "notes" / "mine.txt").write_text("keep me")
    for folder, files in {"prompts": PROMPTS, "traces": {name: json.dumps(value) for name, value in TRACES.items()}}.items():
        (home / folder).mkdir()
        for name, text in files.items():
            (home / folder / f"{name}.json").write_text(text)
    return home


def words(home, line):
    line = line.replace("TEXT", "--text {home}/text.txt").replace("PROMPTS", "--prompts {home}/prompts.json")
    return [word.format(home=home, target=home / "target", draft=home / "draft", **PLACES) for word in line.split()]


def refused(home, capsys, call):
    """The sentence of a call that must be refused and must leave everything as it was."""
    before, shipped = shelf.listing(home), sorted(SHIPPED.parent.rglob("*.safetensors"))
    capsys.readouterr()
    assert call() == 2
    said = capsys.readouterr().err
    assert shelf.listing(home) == before and sorted(SHIPPED.parent.rglob("*.safetensors")) == shipped
    last = re.sub(r"[^\r\n]*\|[^\r\n]*\]", "", said).translate({13: None}).replace("\x1b[A", "").lstrip("\n")  # without bars
    assert last.startswith("error: ") and last.count("\n") == 1 and len(last) > 20, said
    assert "Traceback" not in said and "defect" not in said
    return last


@pytest.mark.parametrize("line", LINES, ids=lambda line: line[:90])
def test_a_bad_line_is_one_sentence_and_changes_nothing(home, capsys, line):
    line, _, said = line.partition(" => ")
    assert said in refused(home, capsys, lambda: status(words(home, line)))


@pytest.mark.parametrize("text", ["caf\udce9", "\ud800"])
@pytest.mark.parametrize("place", ["prompt", "system"])
def test_a_text_that_is_not_utf8_is_one_sentence(home, capsys, text, place):
    given = [text] if place == "prompt" else ["x", "--chat", "--system", text]
    line = words(home, "--target {target} --draft {draft}")
    assert "UTF-8" in refused(home, capsys, lambda: status(["generate", *given, *line]))


@contextmanager
def full_disk(limit=2000):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


WRITING = [
    f"{RANK}{NEW}/deep",
    f"{EXITS} --exits 1{NEW}/deep",
    "trace record {home}/new/deep.json --target {target} PROMPTS --new-tokens 250",
    "run projection --preset smoke --fresh --results {home}/new",
]


@pytest.mark.parametrize("line", WRITING)
def test_a_full_disk_is_one_sentence_and_leaves_nothing_half_written(home, capsys, monkeypatch, line):
    monkeypatch.setattr("flashspec.models.writing.WEIGHTS", ())  # copies, not links
    with full_disk(200 if line.startswith("run") else 2000):
        said = refused(home, capsys, lambda: status(words(home, line)))
    assert "File too large" in said


@pytest.fixture
def failing(monkeypatch):
    def failing(error, act=list):
        def broken(*_):
            act()
            raise error

        monkeypatch.setattr(cli_study, "differing", broken)
        return status(["list"])

    return failing


@pytest.mark.parametrize("error", [KeyError("x"), RuntimeError("two\nlines"), AttributeError("'int' has no"), AssertionError()])
def test_the_control_an_unexpected_exception_is_a_sentence_too(failing, capsys, monkeypatch, error):
    assert failing(error) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: flashspec has a defect here: {type(error).__name__}: ") and said.count("\n") == 1
    assert "FLASHSPEC_TRACEBACK=1" in said
    monkeypatch.setenv("FLASHSPEC_TRACEBACK", "1")
    with pytest.raises(type(error)):
        failing(error)


def test_the_control_a_half_written_file_is_caught(home, failing, capsys):
    half, error = home / "notes" / "half", ValueError("a sentence that is long enough to be one")
    try:
        with pytest.raises(AssertionError):
            refused(home, capsys, lambda: failing(error, lambda: half.write_text("x")))
    finally:
        half.unlink()


def test_an_interrupt_is_status_130_without_a_traceback(failing, capsys):
    assert failing(KeyboardInterrupt()) == 130 and capsys.readouterr().err.strip() == "stopped"


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


@pytest.mark.parametrize(("shell", "code", "said"), [
    ("{run} list | head -1 > /dev/null; exit ${{PIPESTATUS[0]}}", (0, 1), r""),
    ("{run} list > /dev/full", (2,), "error: cannot use a file: No space left on device"),
    ("PYTHONIOENCODING=ascii {run} generate --target {target} --draft {draft} --max-new-tokens 60 é > /dev/null", (0,), ""),
    ("printf '\\xff' | {run} generate --target {target} --draft {draft} -", (2,), "error: a text is not UTF-8"),
    ("env -u HOME {run} generate --target '~/model' --ids 1", (2,), "error: no model at"),
])  # fmt: skip
def test_the_console_script_meets_pipes_disks_and_encodings(home, shell, code, said):
    run = f"{sys.executable} -m flashspec.cli.main"
    line = shell.format(run=run, target=home / "target", draft=home / "draft")
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode in code and said in done.stderr, done
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr
