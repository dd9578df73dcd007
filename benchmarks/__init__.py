"""Measures relay beside its peers: ``python -m benchmarks``, or ``make bench``.

``peers`` starts each relay, ``loads`` makes the load, ``rows`` has the measurements with their goals, ``report`` and
``picture`` write the results.
"""
