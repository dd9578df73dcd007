"""The results as one picture for the README."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from .peers.tcp import PEERS
from .report import Results, number
from .rows.tcp import ROWS

__all__ = ["draw"]

PANELS = [  # a row, one of its metrics, and what to call it
    ("bulk-1", "rate", "Bulk, one stream: Gbit/s"),
    ("bulk-1", "cpu", "Bulk: CPU ms per GiB"),
    ("requests", "cpu", "Request: CPU µs"),
    ("connections", "cpu", "New connection: CPU µs"),
    ("ping-pong", "p50", "Round trip on one core: p50 µs"),
    ("idle", "memory", "Idle connection: KiB"),
]
SHOWN = ["relay", "haproxy-tuned", "haproxy", "nginx", "c"]
OURS, OTHERS, LIMIT = "#1f5f99", "#b8bfc6", "#dfe3e7"
STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 9,
    "figure.constrained_layout.h_pad": 0.12,
    "figure.constrained_layout.w_pad": 0.12,
    "svg.hashsalt": "relay",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.bottom": False,
}


def draw(results: Results, path: Path) -> None:
    """Draw it.

    :param results: what was measured.
    :param path: of the SVG file to write.
    """
    with plt.rc_context(STYLE):
        figure, grid = plt.subplots(3, 2, figsize=(8.4, 6.6), layout="constrained")
        for axes, (row, key, title) in zip(grid.flat, PANELS, strict=True):
            _panel(axes, results, row, key, title)
        machine = results.data["machine"]
        figure.supxlabel(
            f"Medians of {results.data['rounds']} rounds; the lines reach from the smallest to the largest. "
            f"{results.data['date'].split()[0]}, {machine['cores']}, {machine['kernel']}.",
            fontsize=8,
            color="#555555",
        )
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)


def _panel(axes: Axes, results: Results, row: str, key: str, title: str) -> None:
    metric = next(metric for metric in ROWS[row].metrics if metric.key == key)
    peers = [peer for peer in reversed(SHOWN) if results.figures(row, peer, metric)]
    for place, peer in enumerate(peers):
        figures = results.figures(row, peer, metric)
        middle = results.median(row, peer, metric) or 0.0
        colour = OURS if peer == "relay" else LIMIT if peer == "c" else OTHERS
        axes.barh(place, middle, color=colour, height=0.72)
        axes.hlines(place, min(figures), max(figures), color="#444444", linewidth=0.8)
        axes.annotate(number(middle), (max(figures), place), (4, 0), textcoords="offset points", va="center")
    axes.set_yticks(range(len(peers)), [PEERS[peer].title for peer in peers])
    axes.set_title(
        f"{title} ({'more' if metric.more else 'less'} is better)", loc="left", fontsize=9, fontweight="bold"
    )
    axes.set_xticks([])
    axes.margins(x=0.14)
    axes.tick_params(left=False)
