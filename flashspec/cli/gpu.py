"""`flashspec gpu`: the real-shapes study on a CUDA device, part by part."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import click
import torch

from flashspec.cli.flags import At
from flashspec.refusals import refuse
from flashspec.study.real_shapes import EXPERIMENT, PARTS, PRESETS, Params


@click.command("gpu")
@click.option("--minutes", type=float, default=9.0, show_default=True, help="Begin no part after so many minutes.")
@click.option("--results", type=At(), help="Folder of the tables, default book/results.")
@click.option("--stand-ins", is_flag=True, help="Small shapes on the CPU, to see that everything runs.")
def command(minutes: float, results: Path | None, stand_ins: bool) -> int:
    """Measure true shapes part by part; run again, it continues. Status 1 when parts are left, 2 without a CUDA device."""
    if not minutes > 0:
        raise ValueError(f"minutes must be above 0, got {minutes}")
    if not stand_ins and not torch.cuda.is_available():
        return refuse("torch sees no CUDA device; run this on a machine with one, or add --stand-ins")
    said = ""
    for said in steps(PRESETS["smoke"] if stand_ins else Params(), results, minutes):
        click.echo(said)
    return 0 if said == "done" else 1


def steps(base: Params, root: Path | None, minutes: float, clock: Callable[[], float] = time.monotonic) -> Iterator[str]:
    """Run part after part and say how each went, until a comparison fails or no time is left."""
    started = clock()
    for part in PARTS:
        begun = clock()
        if begun - started > 60 * minutes:
            yield f"stopped before {part}: {minutes:g} minutes are over; run it again to continue"
            return
        results = EXPERIMENT.run(replace(base, part=part), root=root)
        gc.collect()  # readers and what they recorded hold one another until then
        torch.cuda.empty_cache()
        yield f"{part}: {len(results.rows)} rows in {results.path.name}, {clock() - begun:.0f} s; {results.machine}"
        if unequal := [row for row in results.rows if row.agrees is False]:
            names = "; ".join(f"{row.group} ({row.shape}, graphs {row.graphs or 'none'})" for row in unequal)
            yield f"stopped: {names} differ from the reference; nothing is timed, delete {results.path} to retry"
            return
    yield "done"
