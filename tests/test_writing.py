"""What is written appears whole or not at all, and nothing that was there before is touched."""

import pytest
from shelf import digest, listing

from flashspec.models.writing import UNFINISHED, fresh_folder, new_file, replaced

TAKEN = pytest.raises(FileExistsError, match="holds files already")


@pytest.mark.parametrize("write", [fresh_folder, replaced, new_file])
@pytest.mark.parametrize("left", [False, True])
def test_what_is_written_appears_whole_or_not_at_all(tmp_path, write, left):
    path, unfinished = tmp_path / "made", tmp_path / f".made{UNFINISHED}"
    inner = "x" if write is fresh_folder else ""
    if left:  # what kill -9 leaves
        (unfinished / inner).mkdir(parents=True) if inner else unfinished.write_text("half")
    for place in (path, tmp_path / "a" / "b") if inner else (path,):
        with pytest.raises(KeyboardInterrupt), write(place) as part:
            (part / inner).write_text("half")
            raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    with write(path) as part:
        (part / inner).write_text("whole")
    assert (path / inner).read_text() == "whole" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("hidden", [".git/HEAD", ".notes", ".new.part/mine"])
def test_what_is_hidden_is_no_less_its_owners(tmp_path, hidden):
    taken, beside = tmp_path / "taken" / hidden, tmp_path / hidden
    for path in (taken, beside):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("keep me")
    with TAKEN, fresh_folder(tmp_path / "taken"):
        pass
    with fresh_folder(tmp_path / "new") as part:
        (part / "whole").write_text("x")
    assert taken.read_text() == beside.read_text() == "keep me" and (tmp_path / "new" / "whole").exists()


def test_what_somebody_puts_there_meanwhile_is_kept(tmp_path):
    mine = tmp_path / "new" / "mine"
    with TAKEN, fresh_folder(tmp_path / "new"):
        mine.parent.mkdir()
        mine.write_text("keep me")
    assert listing(tmp_path) == {"new/mine": digest(mine)}
    (tmp_path / f".file{UNFINISHED}").symlink_to(mine)
    with replaced(tmp_path / "file") as part:
        part.write_text("x")
    assert mine.read_text() == "keep me"


def test_only_a_record_of_ours_is_replaced(tmp_path):
    out = tmp_path / "record"
    out.mkdir()
    (out / "proposals.json").write_text("{}")
    with fresh_folder(out, ours="proposals.json") as part:
        (part / "proposals.json").write_text("[]")
    assert (out / "proposals.json").read_text() == "[]"
    (out / "model.gguf").write_text("weights")
    for ours in ("", "proposals.json"):
        with TAKEN, fresh_folder(out, ours=ours):
            pass
