"""Keys and lines of known_hosts for the tests of SSH."""

from __future__ import annotations

import base64
from pathlib import Path

from helpers import WAIT

from relay.process import DEVNULL, start


def make(path: Path, kind: str = "ed25519", *options: str) -> Path:
    """A key pair of ``ssh-keygen``, without a passphrase unless the options give one."""
    options = options if "-N" in options else ("-N", "", *options)
    options = (*options, "-b", "2048") if kind == "rsa" else options  # the default takes a second
    assert start(["ssh-keygen", "-q", "-t", kind, "-f", str(path), *options], stderr=DEVNULL).wait(WAIT) == 0
    return path


def certify(key: Path, authority: Path, *options: str) -> Path:
    """A certificate of a key, beside it."""
    argv = ["ssh-keygen", "-q", "-s", str(authority), "-I", "test", *options, f"{key}.pub"]
    assert start(argv, stderr=DEVNULL).wait(WAIT) == 0
    return key.with_name(f"{key.name}-cert.pub")


def blob(number: int = 0, kind: bytes = b"ssh-ed25519") -> bytes:
    """Something that looks like a public key."""
    return len(kind).to_bytes(4, "big") + kind + (32).to_bytes(4, "big") + bytes([number]) * 32


def line(hosts: str, key: bytes = blob()) -> str:
    """A line of known_hosts."""
    kind = key[4 : 4 + key[3]].decode()
    return f"{hosts} {kind} {base64.b64encode(key).decode()}"
