"""Quality over time as one picture: an SVG that stretches with the page and knows light from dark.

Where things stand across is said in percent, so that letters keep their size on a telephone; down, in pixels.
"""

from __future__ import annotations

import base64
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from numbers import Real
from pathlib import Path
from typing import Any, TypeGuard

import jinja2

from mlops_lib.report import format_value
from mlops_lib.wording import visible

N_PERIODS = 24
TOP, BOTTOM = 56, 200  # of the values, in pixels
LEFT, RIGHT = 6.0, 99.5  # of the periods, in percent
NARROW, WIDE = 330, 640  # pixels that the names of periods have on a telephone, and elsewhere
RELEASES = {"promote": "", "force": "! ", "rollback": "↩ "}


@dataclass(frozen=True)
class Chart:
    """The picture as an address, the same in words, and the kinds of marks in it."""

    uri: str
    alt: str
    kinds: frozenset[str]


def draw_quality(qualities: Sequence[Any], events: Iterable[Any], stage: str) -> Chart | None:
    """Draw the newest periods; None where no period has a value or an estimate.

    Parameters
    ----------
    qualities, events : sequence of Quality, of Event
        Of :mod:`mlops_lib.programs.operate.status`.
    stage : str
        That of production: a move into another is no release.
    """
    shown = [quality for quality in qualities if quality.metric == qualities[-1].metric]
    periods = list(dict.fromkeys(quality.period for quality in shown))[-N_PERIODS:]
    shown = [quality for quality in shown if quality.period in periods]
    events = sorted((event for event in events if event.period in periods), key=lambda event: event.at)
    values = [n for q in shown for n in (q.value, q.estimated) if is_known(n)]
    if not values:
        return None
    values += [n for q in shown for n in (q.low, q.high, q.limit) if is_known(n)]
    margin = (max(values) - min(values)) * 0.06 or abs(max(values)) * 0.1 or 1.0
    low, high, slot = min(values) - margin, max(values) + margin, (RIGHT - LEFT) / len(periods)

    def x(period: str, part: float = 0.5) -> float:
        return round(LEFT + (periods.index(period) + part) * slot, 3)

    def y(value: float) -> float:
        return round(BOTTOM - (value - low) / (high - low) * (BOTTOM - TOP), 1)

    dots: list[dict[str, Any]] = []
    for period, same in itertools.groupby(shown, key=lambda quality: quality.period):
        marks = [mark for mark in map(functools.partial(_mark, y=y), same) if mark]
        for n, mark in enumerate(marks):  # two versions of one period stand side by side
            dots.append({**mark, "x": x(period), "shift": 12 * n - 6 * (len(marks) - 1)})
    joints = [
        (a, b)
        for a, b in itertools.pairwise(dots)
        if a["version"] == b["version"] and "estimated" not in (a["kind"], b["kind"])
    ]
    limits: list[dict[str, Any]] = []
    for limit, same in itertools.groupby(shown, key=lambda quality: quality.limit):
        run = list(same)
        if is_known(limit):
            limits.append(
                {
                    "x1": x(run[0].period, 0),
                    "x2": x(run[-1].period, 1),
                    "y": y(limit),
                    "text": format_value(float(limit)),
                }
            )
    releases = [event for event in events if event.stage == stage and event.action in RELEASES]
    flags: list[dict[str, Any]] = []
    for period, moves in itertools.groupby(releases, key=lambda event: event.period):
        for n, event in enumerate(moves):
            text = f"{RELEASES[event.action]}v{event.version}"
            flags.append({"x": x(period, min(0.3 * n, 0.9)), "text": text, "kind": event.action})
    trained = []
    for period, moves in itertools.groupby((e for e in events if e.action == "register"), key=lambda e: e.period):
        first, *_, last = [event.version for event in moves] * 2
        trained.append({"x": x(period), "text": f"v{first}" if first == last else f"v{first}–{last}"})
    svg = load_template("chart.svg").render(
        dots=dots,
        joints=joints,
        limits=limits,
        flags=flags,
        trained=trained,
        ticks=[
            {"y": y(tick), "text": text}
            for tick, text in _round_numbers(low, high).items()
            if all(abs(y(tick) - limit["y"]) > 15 for limit in limits)
        ],
        names=list(_name_periods(periods, x)),
    )
    kinds = {dot["kind"] for dot in dots} | {flag["kind"] for flag in flags}
    kinds |= {kind for kind, marks in (("limit", limits), ("trained", trained)) if marks}
    uri = "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()
    return Chart(uri, _describe(shown, releases), frozenset(kinds))


def is_known(number: Any) -> TypeGuard[float]:
    """Whether there is a number, and it is finite."""
    return isinstance(number, Real) and math.isfinite(number)


def _mark(quality: Any, y: Callable[[float], float]) -> dict[str, Any] | None:
    """Return the dot of a period: what was measured, or else what was expected."""
    if is_known(quality.value):
        kind = {True: "held", False: "missed", None: "unjudged"}[quality.held]
        ends = [y(end) for end in (quality.low, quality.high) if is_known(end)]
        return {"version": quality.version, "kind": kind, "y": y(quality.value), "ends": ends if len(ends) > 1 else []}
    if is_known(quality.estimated):
        return {"version": quality.version, "kind": "estimated", "y": y(quality.estimated), "ends": []}
    return None


def _round_numbers(low: float, high: float) -> dict[float, str]:
    """Return three or four round numbers between two, each with its text."""
    power = math.floor(math.log10((high - low) / 3))
    step = next(step * 10.0**power for step in (1, 2, 5, 10) if (high - low) / (step * 10.0**power) <= 4)
    numbers = (step * n for n in range(math.ceil(low / step), math.floor(high / step) + 1))
    return {number: f"{number:,.{max(0, -power)}f}" for number in numbers}


def _name_periods(periods: list[str], x: Callable[[str], float]) -> Iterator[dict[str, Any]]:
    """Yield the names below the axis: months in short over their year, and as many of them as there is room for."""
    dates: list[date | None] = []
    for period in periods:
        try:
            dates.append(date.fromisoformat(f"{period}-01"))
        except ValueError:
            dates.append(None)
    names = [f"{day:%b}" if day else period for day, period in zip(dates, periods, strict=True)]
    width = 6.5 * max(map(len, names)) + 10
    every, every_narrow = (math.ceil(len(periods) * width / room) for room in (WIDE, NARROW))
    year = None
    for n, (period, day, name) in enumerate(zip(periods, dates, names, strict=True)):
        back = len(periods) - 1 - n  # the newest always has its name
        if back % every == 0:
            new = day is not None and day.year != year
            year = day.year if day else None
            yield {"x": x(period), "text": name, "year": year if new else "", "is_wide": back % every_narrow != 0}


def _describe(qualities: Iterable[Any], releases: Iterable[Any]) -> str:
    """Return the picture in words, for who cannot see it."""
    seen = "; ".join(f"{q.period} version {q.version} {q.text}" for q in qualities)
    moved = "; ".join(f"{event.action} version {event.version} in {event.period}" for event in releases)
    return f"Quality by period: {seen}." + (f" Moves: {moved}." if moved else "")


@functools.cache
def load_template(name: str) -> jinja2.Template:
    """Return a template beside this file, which escapes what it is given, control characters too: XML allows none."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        finalize=lambda value: visible(value, keep="\n") if type(value) is str else value,
        trim_blocks=True,
        lstrip_blocks=True,
    ).get_template(name)
