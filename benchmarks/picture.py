"""The results as pictures for the page about performance: bars or curves of medians, one picture for a table."""

from __future__ import annotations

import textwrap
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl

mpl.use("svg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from .curves import draw_curves
from .peers.tcp import PEERS
from .report import PICTURES, Results, has_curves, number
from .rows.tcp import ROWS, TABLES


class Panel(NamedTuple):
    """One chart of a picture.

    :param row: the row whose figures it shows.
    :param key: the key of the metric.
    :param title: its name with the unit.
    """

    row: str
    key: str
    title: str


PANELS = {
    "tcp": [
        Panel("bulk-1", "rate", "Bulk, one stream: Gbit/s"),
        Panel("bulk-1", "cpu", "Bulk: CPU ms per GiB"),
        Panel("requests", "cpu", "Request: CPU µs"),
        Panel("connections", "cpu", "New connection: CPU µs"),
        Panel("ping-pong", "p50", "Round trip on one core: p50 µs"),
        Panel("idle", "memory", "Idle connection: KiB"),
    ],
    "tls": [
        Panel("tls-bulk", "rate", "Bulk: Gbit/s"),
        Panel("tls-handshakes", "rate", "New connections per s"),
    ],
    "ssh": [
        Panel("ssh-up", "rate", "Bulk up: Gbit/s"),
        Panel("ssh-down", "rate", "Bulk down: Gbit/s"),
        Panel("ssh-requests", "rate", "Keep-alive requests per s"),
        Panel("ssh-streams", "rate", "New streams per s"),
    ],
    "socks": [
        Panel("socks-bulk", "rate", "One stream: Gbit/s"),
        Panel("socks-connections", "rate", "New connections per s"),
    ],
}
HIDDEN = (
    "relay-limits",
    "socat",
    "direct",
)  # in the tables only: their bars would make the others too small to compare
OURS, OTHERS, LIMIT = "#1f5f99", "#b8bfc6", "#dfe3e7"
STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 9,
    "figure.constrained_layout.h_pad": 0.12,
    "figure.constrained_layout.w_pad": 0.12,
    "svg.fonttype": "none",  # text stays text: small files that can be searched
    "svg.hashsalt": "relay",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.bottom": False,
}


def draw(results: Results, folder: Path, curves: Path) -> None:
    """Draw a picture for each table that has one and whose rows were measured.

    :param results: what was measured.
    :param folder: for the SVG files with bars.
    :param curves: for those with curves.
    """
    folder.mkdir(exist_ok=True)
    for table in PICTURES:
        panels = PANELS[table]
        if all(panel.row in results.data["samples"] for panel in panels):
            _picture(results, table, panels, folder / f"{table}.svg")
    with plt.rc_context(STYLE):
        for table in filter(partial(has_curves, results), TABLES):
            draw_curves(results, table, curves / f"{table}.svg")


def _picture(results: Results, table: str, panels: list[Panel], path: Path) -> None:
    with plt.rc_context(STYLE):
        lines = (len(panels) + 1) // 2
        figure, grid = plt.subplots(lines, 2, figsize=(8.4, 0.4 + 2.1 * lines), layout="constrained")
        for axes, panel in zip(grid.flat, panels, strict=True):
            _panel(axes, results, panel)
        figure.supxlabel(
            f"Medians; the thin lines reach from the smallest to the largest figure. {results.origin(table)}.",
            fontsize=8,
            color="#555555",
        )
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)


def _panel(axes: Axes, results: Results, panel: Panel) -> None:
    metric = next(metric for metric in ROWS[panel.row].metrics if metric.key == panel.key)
    measured = [peer for peer in results.peers(panel.row) if results.figures(panel.row, peer, metric)]
    peers = [peer for peer in reversed(measured) if peer not in HIDDEN]
    for place, peer in enumerate(peers):
        figures = results.figures(panel.row, peer, metric)
        middle = results.median(panel.row, peer, metric) or 0.0
        colour = OURS if PEERS[peer].title.startswith("relay") else LIMIT if peer == "c" else OTHERS
        axes.barh(place, middle, color=colour, height=0.72)
        axes.hlines(place, min(figures), max(figures), color="#444444", linewidth=0.8)
        axes.annotate(number(middle), (max(figures), place), (4, 0), textcoords="offset points", va="center")
    axes.set_yticks(range(len(peers)), [textwrap.fill(PEERS[peer].title, 18) for peer in peers])
    axes.set_title(
        f"{panel.title} ({'more' if metric.more else 'less'} is better)", loc="left", fontsize=9, fontweight="bold"
    )
    axes.set_xticks([])
    axes.margins(x=0.14)
    axes.tick_params(left=False)
