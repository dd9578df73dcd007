"""Garbage collections of a process that runs for long."""

from __future__ import annotations

import functools
import gc


@functools.cache
def keep_all() -> None:
    """Keep what is there now out of all garbage collections, modules above all. Only the first call does something.

    A full collection looks at every object, and stops the tunnels meanwhile: for 15 ms, every few seconds while clients
    come. Later calls would keep the garbage of a process that has run for long, too.
    """
    gc.freeze()
