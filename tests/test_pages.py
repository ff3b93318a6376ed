"""The README shows what is stored, and nothing that is not."""

from pathlib import Path

import pytest

pytest.importorskip("pandas")

from flashspec.study import pages

README = Path(__file__).resolve().parent.parent / "README.md"


def test_the_readme_is_up_to_date_with_the_stored_tables():
    text = README.read_text(encoding="utf-8")
    assert pages.with_results(text, pages.table(README.parent / "book" / "results")) == text
    assert pages.PICTURE.as_posix() in text and (README.parent / pages.PICTURE).exists()


def test_only_the_marked_part_changes_and_a_page_without_one_is_refused():
    text = f"before\n{pages.START}\nold\n{pages.STOP}\nafter\n"
    fresh = pages.with_results(text, "new")
    assert fresh.startswith("before") and fresh.endswith("after\n") and "old" not in fresh
    assert pages.with_results(fresh, "new") == fresh
    with pytest.raises(ValueError, match="no place for results"):
        pages.with_results("nothing here", "new")


def test_without_tables_no_number_is_shown(tmp_path):
    assert not any(sign.isdigit() for sign in pages.table(tmp_path))
