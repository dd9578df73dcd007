"""What ssh runs to ask us for something; a program of its own, which needs nothing of this package.

``helper.py secret SOCKET PROMPT`` prints the answer to a question (``SSH_ASKPASS``), ``helper.py connection SOCKET``
passes a connected descriptor on over its standard output (``ProxyUseFdpass``), and ``helper.py hostkey WANTED REASON
FINGERPRINT HOST TYPE KEY`` prints a line of known_hosts if the key is the wanted one (``KnownHostsCommand``).
"""

from __future__ import annotations

import os
import socket
import sys


def main(kind: str, *arguments: str) -> int:
    """Do what is wanted; returns the exit status."""
    if kind == "hostkey":
        return _host_key(*arguments)
    with socket.socket(socket.AF_UNIX) as ours:
        ours.connect(arguments[0])
        if kind == "connection":
            return _connection(ours)
        return _secret(ours, os.environ.get("SSH_ASKPASS_PROMPT", ""), *arguments[1:])


def _host_key(wanted: str, reason: str, fingerprint: str, host: str, kind: str, key: str) -> int:
    if reason != "ORDER" and fingerprint == wanted:
        sys.stdout.write(f"{host} {kind} {key}\n")
    return 0


def _connection(ours: socket.socket) -> int:
    ours.sendall(b"connection\0")
    _, descriptors, _, _ = socket.recv_fds(ours, 1, 1)
    if not descriptors:
        return 1
    with socket.socket(fileno=1) as theirs:
        socket.send_fds(theirs, [b"\0"], descriptors)
    return 0


def _secret(ours: socket.socket, hint: str, prompt: str = "") -> int:
    if hint:  # a confirmation or a notice, not a question
        return 1
    ours.sendall(b"secret\0" + os.fsencode(prompt))
    ours.shutdown(socket.SHUT_WR)
    with ours.makefile("rb") as file:
        answer = file.read()
    if not answer.startswith(b"+"):
        return 1
    sys.stdout.buffer.write(answer[1:] + b"\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
