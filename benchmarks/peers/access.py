"""Relays with access rules and limits of clients: their options."""

from __future__ import annotations

SHARED = 50_000_000  # bytes a second
FAST = 10_000_000_000  # bytes a second, more than a stream reaches, so that what is compared moves as fast
LISTS = [
    *("--deny", "10.66.0.0/16", "--deny", "192.0.2.1"),
    *("--allow", "10.0.0.0/8", "--allow", "2001:db8::/32", "--allow", "127.0.0.0/8"),
]
_LIMITS = [
    "per=ip,rate=1000000/1s,ban=1m,name=rate",
    "per=ip,concurrent=100000,name=concurrent",
    "per=ip/24,rate=1000000/1s,ban=1m,name=network",
    "per=identity,concurrent=100000,name=identity",
    "per=tunnel,concurrent=100000,name=all",
]
RULES = [*LISTS, *(word for limit in _LIMITS for word in ("--limit", limit))]
"""Five rules and five limits, all of which the client meets."""
PACED = ["--limit", f"per=connection,bandwidth={FAST}B/s"]
METERED = ["--limit", f"per=tunnel,bandwidth={FAST}B/s"]
SHARING = ["--limit", f"per=tunnel,bandwidth={SHARED}B/s"]
