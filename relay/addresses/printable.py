"""Foreign text as it may be logged and shown: on one line, without control characters, and not too long."""

from __future__ import annotations

LONGEST_SHOWN = 120  # characters of an address that an error repeats
LONGEST_HOST = 255  # characters; no host name is longer: RFC 1035, section 2.3.4


def printable(text: str, longest: int | None = None) -> str:
    """Return a text with every unprintable character escaped: terminals interpret them, and they break log lines.

    :param text: may come from a peer.
    :param longest: characters after which it is cut; ``None`` for no limit.
    """
    if longest is not None and len(text) > longest:
        return printable(text[:longest]) + "…"
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def one_line(text: str | bytes, longest: int) -> str:
    """Return a peer's words as one printable line: white space is a single space, the rest as in :func:`printable`.

    :param text: may come from a peer; bytes are UTF-8.
    :param longest: characters after which it is cut.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8", "replace")
    # Cut before the split: a peer's megabyte of spaces must cost no more than what is shown.
    return printable(" ".join(text[: 4 * longest].split()), longest)


def originator(host: str) -> str:
    """Return the host of a client that an SSH server reports, or ``unknown``: it may be any text (RFC 4254, 7.2)."""
    return host if host.isprintable() and len(host) <= LONGEST_HOST else "unknown"


def shown(text: str) -> str:
    """Return text that is no secret, on one line and short."""
    return printable(text, LONGEST_SHOWN)
