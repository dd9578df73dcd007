"""A program that ssh runs to request something from relay; it imports nothing of this package.

``helper.py secret SOCKET PROMPT`` prints the answer to a question (``SSH_ASKPASS``), ``helper.py connection SOCKET``
passes a connected descriptor on over its standard output (``ProxyUseFdpass``), and ``helper.py hostkey PIN REASON
FINGERPRINT HOST TYPE KEY`` prints a line of known_hosts if the key has the pinned fingerprint (``KnownHostsCommand``).
"""

from __future__ import annotations

import base64
import os
import socket
import sys

_CERTIFICATE = "-cert-v01"
_FIELDS = {"ssh-ed25519": 1, "sk-ecdsa-sha2-nistp256@openssh.com": 3}  # of a public key; else two


def main(kind: str, *arguments: str) -> int:
    """Run the helper's task; return the exit status."""
    if kind == "hostkey":
        return _host_key(*arguments)
    with socket.socket(socket.AF_UNIX) as ours:
        ours.connect(arguments[0])
        if kind == "connection":
            return _connection(ours)
        return _secret(ours, os.environ.get("SSH_ASKPASS_PROMPT", ""), *arguments[1:])


def _host_key(wanted: str, reason: str, fingerprint: str, host: str, kind: str, key: str) -> int:
    # ssh asks first for the order of algorithms (ORDER), without a key to compare.
    if reason != "ORDER" and fingerprint == wanted:
        sys.stdout.write(f"{host} {_plain(kind, key)}\n")
    return 0


def _plain(kind: str, key: str) -> str:
    """The key in a certificate, whose fingerprint is that of the key: ssh tries it when it trusts no authority.

    Source: PROTOCOL.certkeys of OpenSSH: after its type and a nonce a certificate has the fields of the key.
    """
    name, certificate, domain = kind.partition(_CERTIFICATE)
    if not certificate:
        return f"{kind} {key}"
    name += domain if name.startswith("sk-") else ""
    blob, fields = base64.b64decode(key), []
    for _ in range(2 + _FIELDS.get(name, 2)):
        size = 4 + int.from_bytes(blob[:4], "big")
        fields.append(blob[:size])
        blob = blob[size:]
    plain = len(name).to_bytes(4, "big") + name.encode() + b"".join(fields[2:])
    return f"{name} {base64.b64encode(plain).decode()}"


def _connection(ours: socket.socket) -> int:
    ours.sendall(b"connection\0")
    _, descriptors, _, _ = socket.recv_fds(ours, 1, 1)
    if not descriptors:
        return 1
    # Standard output is the socket on which ssh expects the descriptor (ProxyUseFdpass).
    with socket.socket(fileno=1) as theirs:
        socket.send_fds(theirs, [b"\0"], descriptors)
    return 0


def _secret(ours: socket.socket, hint: str, prompt: str = "") -> int:
    if hint:  # a confirmation or a notice, not a question
        return 1
    ours.sendall(b"secret\0" + os.fsencode(prompt))
    # The end of the question: it may hold any byte, so that no byte can mark it.
    ours.shutdown(socket.SHUT_WR)
    with ours.makefile("rb") as file:
        answer = file.read()
    if not answer.startswith(b"+"):
        return 1
    sys.stdout.buffer.write(answer[1:] + b"\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
