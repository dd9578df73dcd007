"""Pictures of how cost grows: a curve of medians for each peer, one panel for a figure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullLocator

from .goals import Metric
from .peers.tcp import PEERS
from .report import Results
from .rows.tcp import ROWS, TABLES

COLOURS = ("#1f5f99", "#d1803c", "#5b9a5b", "#8f6bb0", "#777777")  # the first one is ours
MARKERS = ("o", "s", "^", "D", "v")
WIDE = 30.0  # times the smallest figure, from where on an axis is logarithmic


def draw_curves(results: Results, table: str, path: Path) -> None:
    """Draw the figures of a table over the sizes of its rows.

    :param results: what was measured.
    :param table: of :data:`benchmarks.rows.tcp.TABLES`.
    :param path: the SVG file.
    """
    rows = [row for row in results.rows() if ROWS[row].table == table and row in results.data["samples"]]
    peers = [peer for peer in PEERS if any(peer in results.data["samples"].get(row, {}) for row in rows)]
    known = ROWS[rows[0]].metrics
    metrics = [metric for metric in known if _varies(results, rows, peers, metric)] or [known[0]]
    lines = (len(metrics) + 1) // 2
    figure, grid = plt.subplots(lines, 2, figsize=(8.4, 0.9 + 2.3 * lines), layout="constrained", squeeze=False)
    for axes, metric in zip(grid.flat, metrics, strict=False):
        _panel(axes, results, rows, peers, metric)
    for axes in grid.flat[len(metrics) :]:
        axes.set_axis_off()
    handles = {label: line for axes in grid.flat for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    titles = [PEERS[peer].title for peer in peers if PEERS[peer].title in handles]
    figure.legend([handles[title] for title in titles], titles, loc="outside upper left", ncols=5, frameon=False)
    what = TABLES[table].rpartition(": ")[2]
    figure.supxlabel(
        f"Over the number of {what}. Medians. {results.origin(table)}.",
        fontsize=8,
        color="#555555",
    )
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _points(results: Results, rows: list[str], peer: str, metric: Metric) -> list[tuple[int, float]]:
    found = [(ROWS[row].size or 0, results.median(row, peer, metric)) for row in rows]
    return [(size, figure) for size, figure in found if figure is not None]


def _varies(results: Results, rows: list[str], peers: list[str], metric: Metric) -> bool:
    """Return whether there is anything to see: not where all peers have the same figures."""
    curves = [tuple(points) for peer in peers if (points := _points(results, rows, peer, metric))]
    return len(set(curves)) > 1 or (len(curves) == 1 and len({figure for _, figure in curves[0]}) > 1)


def _panel(axes: Axes, results: Results, rows: list[str], peers: list[str], metric: Metric) -> None:
    figures = []
    for place, peer in enumerate(peers):
        points = _points(results, rows, peer, metric)
        if points:
            figures += [figure for _, figure in points]
            style: dict[str, Any] = {"color": COLOURS[place % len(COLOURS)], "marker": MARKERS[place % len(MARKERS)]}
            axes.plot(*zip(*points, strict=True), label=PEERS[peer].title, markersize=4, linewidth=1.4, **style)
    axes.set_xscale("log")
    if min(figures) > 0 and max(figures) > WIDE * min(figures):
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    sizes = [size for row in rows if (size := ROWS[row].size) is not None]
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.grid(axis="y", color="#e6e6e6")
    more = "more" if metric.more else "less"
    axes.set_title(f"{metric.title} ({more} is better)", loc="left", fontsize=9, fontweight="bold")
