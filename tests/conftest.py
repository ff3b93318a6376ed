"""One thread, property tests that draw the same examples every time, and no faiss heads where there is no faiss."""

import importlib.util

import pytest
import shelf
import torch
from hypothesis import HealthCheck, settings

from flashspec.cli.main import status
from flashspec.heads.candidates import KINDS

pytest_plugins = ("browser",)

torch.set_num_threads(1)
settings.register_profile("fixed", deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
settings.load_profile("fixed")


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    home = tmp_path_factory.mktemp("folders")
    return {**shelf.write_pair(home), "prompts": shelf.prompts_file(home, each=2)}


@pytest.fixture
def cli(capsys):
    """A function that runs a command line to this status; what it wrote, as `out` and `err`."""

    def run(*words, code=0):
        capsys.readouterr()
        assert status([*map(str, words)]) == code
        return capsys.readouterr()

    return run


FIRST = ("chapters", "sweep", "sweep_dask", "sweep_kills", "your_models", "bad_inputs", "files_fuzz", "law", "gguf", "interrupts")


def pytest_configure(config):
    config.option.loadscopereorder = False  # xdist: files start in the order below, the longest first


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: FIRST.index(name) if (name := item.path.stem.removeprefix("test_")) in FIRST else len(FIRST))
    if importlib.util.find_spec("faiss"):
        return
    for item in items:
        given = item.callspec.params.values() if hasattr(item, "callspec") else ()
        if any(isinstance(value, str) and value in KINDS for value in given):
            item.add_marker(pytest.mark.skip(reason="faiss-cpu is not installed here"))
