"""The results: as text for people, as the overview in the page about performance, and as the page of all figures."""

from __future__ import annotations

import json
import re
from io import StringIO
from pathlib import Path
from statistics import median
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from .goals import Goal, Metric, Row, Sample
from .peers.tcp import PEERS
from .rows.tcp import ROWS, TABLES

PICTURES = ("tcp", "tls", "ssh", "socks")  # the tables with a picture of bars
BEGIN, END = "<!-- written by make bench: begin -->", "<!-- written by make bench: end -->"

SIGNS = {True: "≥", False: "≤"}


class Results:
    """Every figure of a run.

    :param data: as it stands in the file.
    """

    def __init__(self, data: dict[str, Any]) -> None:
        self.data = data

    @classmethod
    def begin(cls, date: str, machine: dict[str, str], rounds: int, seconds: int) -> Results:
        """No figures yet."""
        head = {"date": date, "machine": machine, "rounds": rounds, "seconds": seconds}
        return cls(head | {"samples": {}, "missing": {}})

    @classmethod
    def load(cls, path: Path) -> Results:
        """Those that were kept."""
        return cls(json.loads(path.read_text()))

    def merged(self, tables: set[str], newer: Results) -> Results:
        """These, with some tables taken from a newer run, which says for itself when and where that was.

        :param tables: of :data:`TABLES`.
        """
        data: dict[str, Any] = json.loads(json.dumps(self.data))
        for kind in ("samples", "missing"):
            kept = {row: value for row, value in data[kind].items() if ROWS[row].table not in tables}
            data[kind] = kept | {row: new for row, new in newer.data[kind].items() if ROWS[row].table in tables}
        head = {what: newer.data[what] for what in ("date", "machine", "rounds", "seconds")}
        data["later"] = data.get("later", {}) | dict.fromkeys(sorted(tables), head)
        return Results(data)

    def origin(self, table: str) -> str:
        """Return when and where a table was measured."""
        head = self.data.get("later", {}).get(table, self.data)
        machine = head["machine"]
        where = f"{machine['cores']}, {machine['kernel']}, Python {machine['python']}"
        rounds = "1 round" if head["rounds"] == 1 else f"{head['rounds']} rounds"
        return f"{head['date']}, {rounds} of {head['seconds']} s, on {where}"

    def machines(self) -> list[dict[str, str]]:
        """Return the machines of all tables, each once; the newest last."""
        heads = [self.data, *sorted(self.data.get("later", {}).values(), key=lambda head: str(head["date"]))]
        found: list[dict[str, str]] = []
        for head in heads:
            if head["machine"] not in found:
                found.append(head["machine"])
        return found

    def add(self, row: str, peer: str, sample: Sample) -> None:
        """One measurement."""
        self.data["samples"].setdefault(row, {}).setdefault(peer, []).append(sample)

    def missing(self, row: str, peer: str, reason: str) -> None:
        """One measurement that could not be made."""
        self.data["missing"].setdefault(row, {})[peer] = reason

    @property
    def failed(self) -> bool:
        """``True`` if a measurement failed for another reason than an absent peer."""
        return any(reason.startswith("failed") for row in self.data["missing"].values() for reason in row.values())

    def rows(self) -> list[str]:
        """The rows of which there is anything."""
        return [row for row in ROWS if row in self.data["samples"] or row in self.data["missing"]]

    def peers(self, row: str) -> list[str]:
        """The peers of which a row has anything."""
        seen = self.data["samples"].get(row, {}) | self.data["missing"].get(row, {})
        return [peer for peer in PEERS if peer in seen]

    def figures(self, row: str, peer: str, metric: Metric) -> list[float]:
        """All figures of one kind, in the metric's unit."""
        samples = self.data["samples"].get(row, {}).get(peer, [])
        return [sample[metric.key] * metric.scale for sample in samples if metric.key in sample]

    def median(self, row: str, peer: str, metric: Metric) -> float | None:
        """The middle one of them."""
        figures = self.figures(row, peer, metric)
        return median(figures) if figures else None


def has_curves(results: Results, table: str) -> bool:
    """Return whether the figures of a table are drawn as curves over the sizes of its rows."""
    return any(ROWS[row].table == table and ROWS[row].size is not None for row in results.data["samples"])


def number(value: float | None) -> str:
    """A figure with as many digits as mean something."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def verdict(goal: Goal, value: float, more: bool) -> str:
    """Compare a ratio (or a figure) with its goal."""

    def reaches(bound: float) -> bool:
        return value >= bound if more else value <= bound

    if reaches(goal.factor):
        return "reached"
    return "within the limit" if goal.limit is not None and reaches(goal.limit) else "MISSED"


def compare(results: Results, row: str, metric: Metric, goal: Goal, peer: str) -> float | None:
    """Return the ratio of a peer's figure to that of its goal, or the figure itself; ``None`` if one is missing."""
    ours = results.median(row, peer, metric)
    theirs = results.median(row, goal.of, metric) if goal.of else 1.0
    return None if ours is None or not theirs else ours / theirs


def judge(results: Results, row: str, metric: Metric, goal: Goal, peer: str) -> tuple[str, str] | None:
    """Compare a peer with a goal: the ratio with its goal, and the verdict; ``None`` if a figure is missing."""
    found = compare(results, row, metric, goal, peer)
    if found is None:
        return None
    bound = f"{SIGNS[metric.more]} {goal.factor:g}" + (f", limit {goal.limit:g}" if goal.limit else "")
    ratio = f"{found:.2f}" + (f" × {PEERS[goal.of].title}" if goal.of else "")
    return f"{ratio} ({bound})", verdict(goal, found, metric.more)


def judgements(results: Results, row: str, metric: Metric) -> list[tuple[str, str, str]]:
    """Peer, ratio and verdict of every goal; what relay is to reach, it is to reach with limits set too."""
    return [
        (peer, *said)
        for goal in metric.goals
        for peer in (goal.peer, f"{goal.peer}-limits")
        if peer in ROWS[row].peers and (said := judge(results, row, metric, goal, peer))
    ]


def _spread(results: Results, row: str, peer: str, metric: Metric) -> str:
    figures = results.figures(row, peer, metric)
    if not figures:
        return "–"
    return f"{number(median(figures))} ({number(min(figures))}–{number(max(figures))})"


def _table(results: Results, name: str, row: Row) -> Table:
    table = Table(title=f"{name}: {row.title}", title_justify="left", box=box.SIMPLE_HEAD, title_style="")
    table.add_column("")
    for metric in row.metrics:
        table.add_column(metric.title, justify="right")
    for peer in results.peers(name):
        table.add_row(PEERS[peer].title, *[_spread(results, name, peer, metric) for metric in row.metrics])
    return table


def _notes(results: Results, row: str) -> list[str]:
    notes = [
        f"  {metric.title}: {PEERS[peer].title} {ratio}: {said}"
        for metric in ROWS[row].metrics
        for peer, ratio, said in judgements(results, row, metric)
    ]
    missing = results.data["missing"].get(row, {})
    return notes + [f"  {PEERS[peer].title}: {reason}" for peer, reason in missing.items()]


def text(results: Results) -> str:
    """The whole report: medians with the smallest and the largest figure, and every goal."""
    out = StringIO()
    console = Console(file=out, width=120, highlight=False, markup=False, color_system=None)
    for name, title in TABLES.items():
        if any(ROWS[row].table == name for row in results.rows()):
            console.print(f"{title}: {results.origin(name)}; median (smallest–largest)")
    for machine in results.machines():
        console.print()
        for what, value in machine.items():
            console.print(f"  {what}: {value}")
    for row in results.rows():
        console.print()
        console.print(_table(results, row, ROWS[row]))
        for note in _notes(results, row):
            console.print(note)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def page(results: Results, before: str) -> str:
    """The page about performance, with the overview of these results between its two marks.

    :param before: the page as it is now.
    """
    head, _, rest = before.partition(BEGIN)
    _, mark, tail = rest.partition(END)
    if not mark:
        raise ValueError(f"the page has no lines {BEGIN!r} and {END!r}")
    return "\n\n".join([head + BEGIN, "\n".join(_summary(results)), END + tail])


FIGURES = """\
<!-- made by make bench -->

# Figures

The medians of each row that has a goal, with those of relay's peers. `benchmarks/results/latest.txt` has all rows, with
the smallest and the largest figure. [Performance](../performance.md) has the overview, the causes of missed goals, and
how the figures are measured. Compare figures only within one table: not all are from one machine."""


def figures(results: Results) -> str:
    """The page of all figures: the machines; for each table a heading, a picture and the medians."""
    parts = [FIGURES, "\n".join(_machines(results))]
    for name, title in _judged(results).items():
        rows = [row for row in results.rows() if ROWS[row].table == name]
        parts.append(f"## {title}")
        folder = "../performance" if name in PICTURES else "../../benchmarks/results"
        if name in PICTURES or has_curves(results, name):
            parts.append(f"![{title}: relay beside its peers]({folder}/{name}.svg)")
        measured = [row for row in rows if row in results.data["samples"]]
        parts += filter(None, ["\n".join(_markdown_table(results, measured))])
        for row in rows:
            if row not in measured:
                parts.append(f"{ROWS[row].title}: {'; '.join(set(results.data['missing'][row].values()))}.")
    return "\n\n".join(parts) + "\n"


def _judged(results: Results) -> dict[str, str]:
    """The tables that have a goal, and their titles."""
    found = {ROWS[row].table for row in results.rows() if any(metric.goals for metric in ROWS[row].metrics)}
    return {name: title for name, title in TABLES.items() if name in found}


def _machines(results: Results) -> list[str]:
    """Each day and machine, with the tables that were measured then and there."""
    tables: dict[str, list[str]] = {}
    for name, title in _judged(results).items():
        date, _, where = results.origin(name).partition(", ")
        tables.setdefault(f"| {date.partition(' ')[0]} | {where} |", []).append(f"[{title}](#{_anchor(title)})")
    rows = [f"{when} {', '.join(titles)} |" for when, titles in sorted(tables.items(), reverse=True)]
    return ["| date | rounds and machine | tables |", "| --- | --- | --- |", *rows]


def _anchor(title: str) -> str:
    """The anchor of a heading, as GitHub makes it."""
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


def _summary(results: Results) -> list[str]:
    """For each table how many goals relay reaches and misses, and the one that it misses by most."""
    lines = ["| table | goals reached | missed | missed by most |", "| --- | ---: | ---: | --- |"]
    for name, title in TABLES.items():
        reached = 0
        missed: list[tuple[float, str]] = []
        goals = [
            (row, metric, goal)
            for row in results.rows()
            for metric in ROWS[row].metrics
            for goal in metric.goals
            if ROWS[row].table == name
        ]
        for row, metric, goal in goals:
            found = compare(results, row, metric, goal, goal.peer)
            said = judge(results, row, metric, goal, goal.peer)
            if found is None or said is None:
                continue
            if said[1] == "MISSED":
                part = found / goal.factor if metric.more else goal.factor / found
                missed.append((part, f"{ROWS[row].title}: {metric.title}: {said[0]}"))
            else:
                reached += 1
        if reached or missed:
            worst = min(missed)[1] if missed else "–"
            lines.append(f"| [{title}](reference/figures.md#{_anchor(title)}) | {reached} | {len(missed)} | {worst} |")
    return lines


def _markdown_table(results: Results, rows: list[str]) -> list[str]:
    """The figures that have a goal; the text has the others."""
    judged = [
        (row, metric, [one for one in judgements(results, row, metric) if not one[0].endswith("-limits")])
        for row in rows
        for metric in ROWS[row].metrics
    ]
    judged = [one for one in judged if one[2]]
    peers = [peer for peer in PEERS if any(results.figures(row, peer, metric) for row, metric, _ in judged)]
    lines = [
        "| | " + " | ".join(PEERS[peer].title for peer in peers) + " | relay against its goal |",
        "| --- |" + " ---: |" * len(peers) + " --- |",
    ]
    for row, metric, said in judged:
        figures = [number(results.median(row, peer, metric)) for peer in peers]
        several = len({peer for peer, *_ in said}) > 1
        goals = "<br>".join(f"{PEERS[peer].title}: " * several + f"{ratio}: {word}" for peer, ratio, word in said)
        lines.append(f"| {ROWS[row].title}: {metric.title} | " + " | ".join(figures) + f" | {goals} |")
    return lines if judged else []
