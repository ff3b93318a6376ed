"""Exits are held against what they were to reach."""

import pytest
import tables_hispec

from flashspec.study import aims

pandas = pytest.importorskip("pandas")


def test_an_exit_is_judged_by_the_held_out_modules():
    table = aims.exits(tables_hispec.quality().frame)
    for depth, wanted in aims.EXITS.items():
        found = table.loc[f"acceptance of exit {depth}"]
        assert found["reached"] == ("yes" if aims.card("target")[f"accept_{depth}"] >= wanted else "no")
        assert "0.55 on the prompts" in found["found"] and "in training" in found["limit"]
    assert "in training" in aims.shown(table).page and "..." not in aims.shown(table).page
    assert list(aims.exits(tables_hispec.quality().frame, "my/model")["reached"]) == ["no", "no"]
    count = int((table["reached"] == "no").sum())
    assert aims.missed(table).startswith(f"{count} of {len(table)} aims" if count else "all")
