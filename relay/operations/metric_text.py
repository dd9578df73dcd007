"""Samples in the text format of Prometheus (exposition format 0.0.4).

All samples of a family about one tunnel are one text with places for the figures, which is made once: 500 tunnels have
25,000 samples. prometheus_client takes 9 µs for each.
"""

from __future__ import annotations

import functools
import itertools

from ..eventloop.histogram import Histogram

__all__ = ["byte_counts", "counts", "escaped", "filled", "histogram"]

_MOST = 8192  # texts that are remembered; each has about 1 kB


@functools.lru_cache(4096)
def escaped(value: str) -> str:
    """Return a label value as it stands between its quotation marks."""
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


@functools.lru_cache(_MOST)
def counts(name: str, tunnel: str, label: str, keys: tuple[str, ...]) -> str:
    """Return the samples of a mapping, with places for its values.

    :param name: of the family.
    :param tunnel: its name as a label value.
    :param label: of the keys.
    :param keys: of the mapping.
    """
    begin = f'{name}{{tunnel="{tunnel}",{label}="'
    return "\n".join([f'{_literal(begin + escaped(key))}"}} %s' for key in keys])


@functools.lru_cache(_MOST)
def byte_counts(name: str, tunnel: str) -> str:
    """Return the samples of bytes, with places: copied and spliced from the clients, then those to them.

    :param name: of the family.
    :param tunnel: its name as a label value.
    """
    begin = _literal(f'{name}{{tunnel="{tunnel}",direction="')
    kinds = itertools.product(("in", "out"), ("copy", "splice"))
    return "\n".join([f'{begin}{direction}",engine="{engine}"}} %s' for direction, engine in kinds])


@functools.lru_cache(_MOST)
def histogram(name: str, labels: str, bounds: tuple[float, ...]) -> str:
    """Return the text of a histogram, with places for the cumulative counts, the sum and the count.

    :param name: of the family.
    :param labels: as they stand between the braces.
    :param bounds: of the durations.
    """
    given = _literal(labels)
    begin = f"{name}_bucket{{{given}{',' if given else ''}le="
    buckets = [f'{begin}"{bound}"}} %s' for bound in (*bounds, "+Inf")]
    braced = f"{{{given}}}" if given else ""
    return "\n".join([*buckets, f"{name}_sum{braced} %s", f"{name}_count{braced} %s"])


_last: dict[str, tuple[tuple[object, ...], str]] = {}  # template → its last figures, and the text with them


def filled(template: str, figures: tuple[object, ...]) -> str:
    """Return a template with figures: most tunnels of many are idle, and have the same as at the last scrape.

    :param template: a text with places.
    :param figures: one for each place, or a histogram.
    """
    known = _last.get(template)
    if known is not None and known[0] == figures:
        return known[1]
    if isinstance(figures, Histogram):
        below = (*itertools.accumulate(figures.counts),)
        text = template % (*below, figures.total, below[-1])
    else:
        text = template % figures
    if len(_last) >= _MOST:
        _last.clear()
    _last[template] = figures, text
    return text


def _literal(text: str) -> str:
    """Return a text that the operator ``%`` leaves as it is."""
    return text.replace("%", "%%")
