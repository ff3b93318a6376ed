"""A decode on an axis of time: a lane for each part, every round's tokens, and buttons to step through it or play it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from flashspec.decoding.cascade import Event
from flashspec.decoding.generate import SHADES, Output, Said
from flashspec.study.frames import DataFrame, groups, having
from flashspec.study.quote import named
from flashspec.study.stages import PARTS, seconds_by_part
from flashspec.study.tables import Results

PAGE = Path(__file__).parents[1] / "data" / "timeline.html"
SPENT = dict(zip(PARTS, ("#d9d9d9", "#5f6368", "#E69F00", "#009E73", "#0072B2", "#CC79A7", "#F0E442"), strict=True))
LANES = dict(zip(PARTS[1:6], ("step", "draft", "middle check", "check", "final token"), strict=True))
WHO = ["target", "draft", "method", "head", "k", "exits", "interval", "probes", "temperature", "rule", "finalize"]
CALLED = {"k": "k = {}", "exits": "exits {}", "temperature": "T = {}"}
ONE = dict.fromkeys(("drafted", "rounds", "emitted", "prompts", "actions_1"), 1)
ROW, LEAST, NARROW, WIDE = 20, 12, 560, 4000  # pixels: a lane, the shortest bar, and the axis at least and at most


class Decode(NamedTuple):
    """A decode to draw: its events, the words of each, and seconds of each part; without these a forward is 1 long."""

    name: str
    events: Sequence[Event]
    words: Sequence[Said]
    seconds: Mapping[str, float]


class Span(NamedTuple):
    """One action from `start` to `end`, in seconds or forwards, in the lane of its part; rounds count from 1."""

    part: str
    start: float
    end: float
    round: int
    event: Event
    words: Said


def script() -> str:
    """The script of every timeline, with its tags."""
    page = PAGE.read_text(encoding="utf-8")
    return page[page.index("<script>") : page.index("</script>") + len("</script>")]


def spans(decode: Decode) -> list[Span]:
    """The actions of a decode one after the other, each as long as its part is said to take.

    A reader that catches up does so within the time of another one's action, and has none of its own.
    """
    last, at, done, found = max((event.stage for event in decode.events), default=0), 0.0, 0, list[Span]()
    for event, words in zip(decode.events, decode.words, strict=True):
        top = event.stage == last
        if event.adds:
            part = ("full checks" if top else "middle checks") if event.stage else "drafting" if last else "plain steps"
        elif top:
            part = "final token"
        else:
            continue
        end = at + decode.seconds.get(part, 1.0) * max(1, event.adds)
        found.append(Span(part, at, end, done + (part != "final token"), event, words))
        at, done = end, done + (top and event.adds > 0)
    return found


@dataclass(frozen=True)
class Timeline:
    """Decodes of one prompt below one another on one axis; in a notebook or a page it can be stepped through and played."""

    decodes: Sequence[Decode]
    prompt: str = ""
    source: str = ""

    def _repr_html_(self) -> str:
        import jinja2

        top, drawn, lengths = 0, list[dict[str, Any]](), list[float]()
        for decode in self.decodes:
            actions = spans(decode)
            lanes = [part for part in LANES if any(action.part == part for action in actions)]
            drawn.append({"name": decode.name or "decode", "top": top, "lanes": lanes, "actions": actions})
            top += ROW * (1 + len(lanes))
            lengths += [action.end - action.start for action in actions]
        total = max(each["actions"][-1].end for each in drawn)
        width = min(max(LEAST * total / min(lengths), NARROW), WIDE)
        unit = "ms" if all(decode.seconds for decode in self.decodes) else "forwards"
        facts = {"decodes": drawn, "height": top, "width": width, "scale": width / total, "ticks": ticks(total, width / 90)}
        looks = {"row": ROW, "lanes": LANES, "colours": SPENT, "shades": SHADES, "unit": unit, "of": 1000 if unit == "ms" else 1}
        page = jinja2.Environment(autoescape=True, trim_blocks=True).from_string(PAGE.read_text(encoding="utf-8"))
        return page.render(**facts, **looks, prompt=self.prompt, source=self.source)


def ticks(total: float, count: float) -> list[float]:
    """Round numbers from 0 to a total, about so many."""
    step = next(n * 10.0**power for power in range(-9, 9) for n in (1, 2, 5) if total <= count * n * 10.0**power)
    return [place * step for place in range(int(total / step) + 1)]


def timeline(decodes: Output | Mapping[str, Output] | Results, times: Results | Mapping[str, float] | None = None) -> Timeline:
    """One decode or several by name, as `fs.generate` gives them, or the first prompt's of a table of `decodes`.

    An event has no clock: `times` are seconds by part (names of LANES), or for a table a race that timed these parts alone,
    of the same models and settings. Without them a forward is 1 long.
    """
    if isinstance(decodes, Results):
        frame, race = decodes.frame, times if isinstance(times, Results) else None
        tables = ", ".join(f"{each.path.parent.name}/{each.path.stem}" for each in (decodes, race) if each)
        first = frame[frame["prompt"] == frame["prompt"].iloc[0]]
        return Timeline(stored(first, race and race.frame), first["begins"].iloc[0], f"{tables} · {(race or decodes).machine}")
    outputs, seconds = {"": decodes} if isinstance(decodes, Output) else decodes, times if isinstance(times, Mapping) else {}
    prompt = next((output.prompt for output in outputs.values()), "")
    return Timeline([Decode(name, output.events, output.said, seconds) for name, output in outputs.items()], prompt)


def stored(frame: DataFrame, race: DataFrame | None) -> list[Decode]:
    """The decodes of a table, plain and eager ones first, named by what differs, with medians of the parts that a race timed.

    Decodes whose parts were not timed are left out where others' were.
    """
    frame, found = frame.assign(late=frame["finalize"] == "deferred", fast=frame["method"] != "baseline"), list[Decode]()
    varied = [name for name in WHO if frame.loc[frame["fast"], name].nunique() > 1 and name not in ("interval", "probes")]
    for who, rows in groups(frame, ["fast", *WHO[:-1], "late", "finalize"]):
        events = [Event._make((*map(int, line), ())) for line in rows[[*Event._fields[:5]]].itertuples(index=False)]
        name = ", ".join(CALLED.get(column, "{}").format(named(str(who[column]))) for column in varied if who[column])
        seconds = dict[str, float]()
        if race is not None:
            ran = race[having(race, {column: who[column] for column in WHO}) & race["step_seconds"].notna()]
            priced = seconds_by_part(ran.assign(**ONE, actions_2=ran["actions_2"].clip(upper=1)))[list(LANES)].median()
            seconds = {} if priced.isna().any() else dict(priced)
        found.append(Decode(name if who["fast"] else "plain decoding", events, list(map(json.loads, rows["words"])), seconds))
    timed = [decode for decode in found if decode.seconds]
    return timed if len(timed) > 1 else [decode._replace(seconds={}) for decode in found]
