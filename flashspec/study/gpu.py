"""`make gpu`: the real-shapes study on a CUDA device, in order, each part stored before the next starts.

Stopped at any moment, it continues where it was: parts whose table is stored are not measured again.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from flashspec.refusals import guarded, refuse
from flashspec.study.experiment import Results, run
from flashspec.study.experiments.real_shapes import EXPERIMENT, PARTS, SMOKE, Params

MINUTES = 9.0


def parts(base: Params) -> list[Params]:
    """Correctness first, then costs from the draft to the rest."""
    return [replace(base, part=part) for part in PARTS]


def wrong(results: Results) -> list[str]:
    """What a correctness table found unequal."""
    return [f"{row.what} ({row.shape}, graphs {row.graphs or 'none'})" for row in results.rows if row.agrees == 0]


def steps(base: Params, root: Path | None, minutes: float, clock: Callable[[], float] = time.monotonic) -> Iterator[str]:
    """Run part after part and say how each went; ends early where a comparison failed or no time is left."""
    started = clock()
    for params in parts(base):
        if clock() - started > 60 * minutes:
            yield f"stopped before {params.part}: {minutes:g} minutes are over; run it again to continue"
            return
        begun = clock()
        results = run(EXPERIMENT, params, root=root)
        _release()
        yield f"{params.part}: {len(results.rows)} rows in {results.path.name}, {clock() - begun:.0f} s; {results.machine}"
        if unequal := wrong(results):
            yield f"stopped: {'; '.join(unequal)} differ from the reference; nothing is timed, delete {results.path} to retry"
            return
    yield "done"


def _release() -> None:
    """Give back the device memory of models that are gone; readers and what they recorded hold one another until collected."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure every part; status 0 when all are stored, 1 when some are left, 2 without a CUDA device."""
    parser = argparse.ArgumentParser(prog="make gpu", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=MINUTES, help="stop before the first part that starts after these")
    parser.add_argument("--results", type=Path, help="folder of the tables, default book/results")
    parser.add_argument("--stand-ins", action="store_true", help="small shapes on the CPU, to see that everything runs")
    given = parser.parse_args(arguments)
    return guarded(lambda: _measured(given))


def _measured(given: argparse.Namespace) -> int:
    if not given.minutes > 0:
        raise ValueError(f"minutes must be above 0, got {given.minutes}")
    if not given.stand_ins and not torch.cuda.is_available():
        return refuse("torch sees no CUDA device; run this on a machine with one, or add --stand-ins")
    said = ""
    for said in steps(SMOKE if given.stand_ins else Params(), given.results, given.minutes):
        print(said, flush=True)
    return 0 if said == "done" else 1


if __name__ == "__main__":
    sys.exit(main())
