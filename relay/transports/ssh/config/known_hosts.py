"""``known_hosts`` files (sshd(8), "SSH_KNOWN_HOSTS FILE FORMAT"): lookup of host keys, and new entries."""

from __future__ import annotations

import base64
import binascii
import contextlib
import fcntl
import hashlib
import hmac
import os
import secrets
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ....access.regular_file import open_own, open_regular
from ...files import home
from .identities import key_type

AUTHORITY = "@cert-authority"
REVOKED = "@revoked"
LONGEST_LINE = 1 << 16  # bytes; longer lines are ignored
LOCK_WAIT = 2.0  # seconds to wait for another program that holds the file's lock

_writing = threading.Lock()


@dataclass(frozen=True, slots=True)
class Entry:
    """One line about a host.

    :param file: the path of the file.
    :param line: the line's number, from 1.
    :param marker: ``@cert-authority``, ``@revoked`` or nothing.
    :param blob: the public key in SSH's own encoding (RFC 4253, section 6.6).
    """

    file: str
    line: int
    marker: str
    blob: bytes

    @property
    def type(self) -> str:
        """The key's type, such as ``ssh-ed25519``."""
        return key_type(self.blob)

    def __str__(self) -> str:
        return f"{self.file} line {self.line}"


def fingerprint(blob: bytes) -> str:
    """Return the fingerprint of a public key in the format of ``ssh-keygen -l``: ``SHA256:…``."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode("ascii").rstrip("=")


def find(files: Iterable[str], name: str) -> list[Entry]:
    """Return the lines for a host, in the order of the files.

    Files that are missing, unreadable or not regular are ignored, and malformed lines, too.

    :param files: paths.
    :param name: a host name or address, or ``[host]:port`` where the port is not 22.
    """
    wanted = name.lower()
    entries = (_entry(file, number, line, wanted) for file in files for number, line in _lines(file))
    return [entry for entry in entries if entry is not None]


def append_entry(file: str, name: str, blob: bytes, *, hashed: bool = False) -> None:
    """Append one line, unless another thread or program has added the same key meanwhile.

    :param file: as for :func:`open_to_append`.
    :param name: as for :func:`find`.
    :param blob: the public key.
    :param hashed: whether to store a hash of the name (``HashKnownHosts``).
    :raises OSError: if it cannot be written.
    """
    line = f"{_hashed(name) if hashed else name} {key_type(blob)} {base64.b64encode(blob).decode('ascii')}\n"
    descriptor = open_to_append(file)
    with open(descriptor, "r+b", buffering=0) as writer, _locked(descriptor):
        # Looked up again under the lock: several connections to a new host may come here at once.
        if any(entry.blob == blob and not entry.marker for entry in find([file], name)):
            return
        size = os.fstat(descriptor).st_size
        # An editor may have left the last line without its end; a key behind it would be part of that line.
        unfinished = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        writer.write(("\n" * unfinished + line).encode("utf-8", "surrogateescape"))  # one write: complete or missing


def open_to_append(file: str) -> int:
    """Open a file of host keys for reading and appending.

    :param file: its path. A missing file is created with mode 0600, and a missing ``~/.ssh`` with 0700.
    :returns: a descriptor, which the caller closes.
    :raises OSError: if it cannot be written.
    """
    own = os.path.join(home(), ".ssh")
    if os.path.dirname(os.path.abspath(file)) == own:
        with contextlib.suppress(FileExistsError):
            os.mkdir(own, 0o700)
    return open_own(file, os.O_RDWR | os.O_APPEND, of_any_user=True)  # what others then trust is their own choice


@contextlib.contextmanager
def _locked(descriptor: int) -> Iterator[None]:
    """Lock the file against other threads, and against other processes as far as they unlock it in time."""
    deadline = time.monotonic() + LOCK_WAIT
    with _writing:
        while time.monotonic() < deadline:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                threading.Event().wait(0.02)  # flock(2) has no deadline of its own
            except OSError:
                break  # a file system without locks
        yield  # the lock goes with the descriptor


def _hashed(name: str) -> str:
    salt = secrets.token_bytes(20)
    digest = hmac.digest(salt, name.lower().encode("utf-8", "surrogateescape"), "sha1")
    return f"|1|{base64.b64encode(salt).decode('ascii')}|{base64.b64encode(digest).decode('ascii')}"


def _lines(file: str) -> Iterator[tuple[int, bytes]]:
    try:
        reader = open_regular(file)
    except OSError:
        return
    with reader:
        number, begun = 1, False
        while piece := reader.readline(LONGEST_LINE):
            whole = piece.endswith(b"\n") or len(piece) < LONGEST_LINE
            if whole and not begun:
                yield number, piece
            begun = not whole
            number += whole


def _entry(file: str, number: int, line: bytes, wanted: str) -> Entry | None:
    """Parse a line; ``None`` if it is not for the host."""
    fields = line.decode("utf-8", "surrogateescape").split(None, 4)
    marker = fields.pop(0) if fields and fields[0].startswith("@") else ""
    if len(fields) < 3 or fields[0].startswith("#") or marker not in ("", AUTHORITY, REVOKED):
        return None
    if not _is_about(fields[0], wanted):
        return None
    try:
        blob = base64.b64decode(fields[2], validate=True)
    except (binascii.Error, ValueError):
        return None
    return Entry(file, number, marker, blob) if key_type(blob) == fields[1] else None


def _is_about(patterns: str, wanted: str) -> bool:
    """Return whether the first field of a line matches the host: a hash, or a list in which ``!`` excludes."""
    if patterns.startswith("|"):
        return _is_hash_of(patterns, wanted)
    found = False
    for pattern in patterns.lower().split(","):
        if matches(wanted, pattern.removeprefix("!")):
            # An exclusion decides at once, wherever it stands (sshd(8)).
            if pattern.startswith("!"):
                return False
            found = True
    return found


def _is_hash_of(text: str, wanted: str) -> bool:
    parts = text.split("|")
    if len(parts) != 4 or parts[1] != "1":
        return False
    try:
        salt, digest = (base64.b64decode(part, validate=True) for part in parts[2:])
    except (binascii.Error, ValueError):
        return False
    return hmac.digest(salt, wanted.encode("utf-8", "surrogateescape"), "sha1") == digest


def matches(text: str, pattern: str) -> bool:
    """Return whether a text matches a pattern of ``*`` and ``?`` (ssh_config(5), "PATTERNS"), in linear memory."""
    if "*" not in pattern and "?" not in pattern:
        return text == pattern
    place = at = 0
    # No regular expression and no recursion: a pattern with many stars would take exponential time.
    star, resume = -1, 0
    while place < len(text):
        if at < len(pattern) and pattern[at] == "*":
            star, resume = at, place
            at += 1
        elif at < len(pattern) and pattern[at] in ("?", text[place]):
            at, place = at + 1, place + 1
        elif star >= 0:
            resume += 1
            at, place = star + 1, resume  # the last star takes one more
        else:
            return False
    return not pattern[at:].strip("*")
