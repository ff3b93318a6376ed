"""Every command of the how-to runs as it is written, on tiny fabricated checkpoints in the place of the reader's own."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
import shelf
import torch
from shelf import ROOT
from test_awq import SMALL, write_awq
from test_chat import GENERATION, TEMPLATE

from flashspec.cli import train
from flashspec.cli.main import status
from flashspec.models.synthetic import synthetic
from flashspec.train.corpus import write_tokenizer

PAGE = ROOT / "notebooks" / "11_your_models.ipynb"
ROWS, CONTEXT = 4608, 4096
SHAPES = {"Qwen3-32B-AWQ": "reference-target-AWQ", "Qwen3-0.6B": "reference-shallow"}  # as small as shapes get
PROCESSES = {"papermill": ["-m", "papermill"], "python": [], "torchrun": ["-m", "torch.distributed.run"]}


def commands():
    cells = json.loads(PAGE.read_text(encoding="utf-8"))["cells"]
    text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    return [line for block in re.findall(r"```sh\n(.*?)```", text, flags=re.S) for line in block.splitlines() if line]


STEPS = ("doctor", "generate", "quantize", "plan", "plan heads", "trace record", "trace replay", "run race", "notebooks",
         "torchrun", "make gpu", "-p target TARGET -p draft DRAFT", "--chat")  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a target that can chat, its draft, its 4-bit twin under another name, a text and the notebooks."""
    home = tmp_path_factory.mktemp("place")
    config = replace(shelf.model(1).config, layers=6, vocab_size=ROWS, context=CONTEXT)
    target, draft = (synthetic(config, torch.float32, depth=layers) for layers in (6, 3))
    draft.load_state_dict({name: weight for name, weight in target.state_dict().items() if name in draft.state_dict()})
    shelf.train_tokenizer(home / "tokenizer.json", Path(__file__).read_text())
    target.save(home / "TARGET", "float32")
    draft.save(home / "DRAFT", "float32")
    write_awq(replace(SMALL, vocab_size=ROWS, context=CONTEXT), home / "packed")
    for name in ("TARGET", "DRAFT", "packed"):
        write_tokenizer(home / name, home / "tokenizer.json")
    talks = home / "TARGET" / "tokenizer_config.json"
    talks.write_text(json.dumps(json.loads(talks.read_text()) | {"chat_template": TEMPLATE}))
    (home / "TARGET" / "generation_config.json").write_text(json.dumps(GENERATION))
    (home / "mine.txt").write_text("words to calibrate on")
    (home / "notebooks").symlink_to(ROOT / "notebooks")
    return home


def spelled(line, place):
    folders = {name: str(place / name) for name in ("TARGET", "DRAFT", "AWQ")}
    return [{**folders, **SHAPES}.get(word, word) for word in shlex.split(line)]


def outcome(words, place):
    program, *rest = words
    if program == "flashspec":
        return status(rest)
    if program == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        return int(not {name for word in rest for name in re.findall(r"\[(\w+)\]", word)} <= set(extras))
    command = ["make", "-C", str(ROOT), f"PYTHON={sys.executable}", *rest]
    if program in PROCESSES:
        command = [sys.executable, *PROCESSES[program], *rest]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "FLASHSPEC_RESULTS": str(place / "results")}
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=900)
    print(done.stdout[-2000:], done.stderr[-2000:])
    return done.returncode


@pytest.mark.parametrize("line", commands())
def test_a_command_of_the_page_succeeds_and_the_page_names_every_step(line, place, monkeypatch):
    for needed in ("transformers", "papermill", "myst_nb"):
        pytest.importorskip(needed)
    monkeypatch.chdir(place)
    monkeypatch.setenv("FLASHSPEC_RESULTS", str(place / "results"))
    monkeypatch.setattr(train, "quantize_awq", lambda source, out, *_: shutil.copytree(place / "packed", out))
    assert outcome(spelled(line, place), place) == 0
    assert all(word in "\n".join(commands()) for word in STEPS)


@pytest.mark.parametrize("line", [
    "flashspec generate --taget TARGET x",
    "flashspec generate --target NOWHERE x",
    'pip install -e ".[everything]"',
    "flashspec notebooks notebooks/99_nothing.ipynb out",
])  # fmt: skip
def test_the_control_a_command_that_is_wrong_fails(line, place, monkeypatch):
    monkeypatch.chdir(place)
    assert outcome(spelled(line, place), place) != 0
