"""The cost of a copy of a TLS session, as Python's ``ssl`` makes it, and of cheaper ways: for ``report.md``.

``python session_copy.py`` needs nothing but the ``openssl`` command, and a Python whose ``_ssl`` is linked dynamically.
Both ends are in this process, and speak TLS 1.3 with a certificate of P-256.
"""

from __future__ import annotations

import _ssl
import ctypes
import functools
import os
import platform
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

TIMES, ROUNDS = 200, 15
SENT_SHUTDOWN = 1  # SSL_SENT_SHUTDOWN
POINTER = ctypes.c_void_p
LIBRARY = ctypes.CDLL(_ssl.__file__)  # its symbols, and those of the OpenSSL that it is linked with
SIGNATURES = {
    "TLS_client_method": (POINTER,),
    "TLS_server_method": (POINTER,),
    "SSL_CTX_new": (POINTER, POINTER),
    "SSL_CTX_use_certificate_chain_file": (ctypes.c_int, POINTER, ctypes.c_char_p),
    "SSL_CTX_use_PrivateKey_file": (ctypes.c_int, POINTER, ctypes.c_char_p, ctypes.c_int),
    "SSL_new": (POINTER, POINTER),
    "SSL_free": (None, POINTER),
    "SSL_set_bio": (None, POINTER, POINTER, POINTER),
    "SSL_set_connect_state": (None, POINTER),
    "SSL_set_accept_state": (None, POINTER),
    "SSL_do_handshake": (ctypes.c_int, POINTER),
    "SSL_read": (ctypes.c_int, POINTER, POINTER, ctypes.c_int),
    "SSL_write": (ctypes.c_int, POINTER, ctypes.c_char_p, ctypes.c_int),
    "SSL_session_reused": (ctypes.c_int, POINTER),
    "SSL_set_shutdown": (None, POINTER, ctypes.c_int),
    "SSL_get1_session": (POINTER, POINTER),
    "SSL_set_session": (ctypes.c_int, POINTER, POINTER),
    "SSL_SESSION_dup": (POINTER, POINTER),
    "SSL_SESSION_free": (None, POINTER),
    "SSL_SESSION_up_ref": (ctypes.c_int, POINTER),
    "SSL_SESSION_is_resumable": (ctypes.c_int, POINTER),
    "i2d_SSL_SESSION": (ctypes.c_int, POINTER, POINTER),
    "d2i_SSL_SESSION": (POINTER, POINTER, POINTER, ctypes.c_long),
    "BIO_new_bio_pair": (ctypes.c_int, POINTER, ctypes.c_size_t, POINTER, ctypes.c_size_t),
}


def call(name: str, *arguments: Any) -> Any:
    """Call a function of OpenSSL."""
    function = getattr(LIBRARY, name)
    function.restype, *function.argtypes = SIGNATURES[name]
    return function(*arguments)


def connected(client: int, server: int, session: int | None = None) -> tuple[int, int]:
    """Both ends of a connection that has taken the server's tickets."""
    ends = call("SSL_new", client), call("SSL_new", server)
    near, far = POINTER(), POINTER()
    call("BIO_new_bio_pair", ctypes.byref(near), 2**16, ctypes.byref(far), 2**16)
    for end, bio in zip(ends, (near, far), strict=True):
        call("SSL_set_bio", end, bio, bio)
    call("SSL_set_connect_state", ends[0])
    call("SSL_set_accept_state", ends[1])
    if session is not None:
        call("SSL_set_session", ends[0], session)
    for _ in range(3):
        for end in ends:
            call("SSL_do_handshake", end)
    call("SSL_write", ends[1], b"!", 1)
    assert call("SSL_read", ends[0], ctypes.create_string_buffer(1), 1) == 1, "no handshake"
    return ends


def coded(session: int) -> int:
    """A copy as ``_ssl_session_dup`` of CPython makes it."""
    size = call("i2d_SSL_SESSION", session, None)
    buffer = ctypes.create_string_buffer(size)
    end = ctypes.cast(buffer, POINTER)
    call("i2d_SSL_SESSION", session, ctypes.byref(end))
    begin = ctypes.cast(buffer, POINTER)
    copy: int = call("d2i_SSL_SESSION", None, ctypes.byref(begin), size)
    return copy


def shared(session: int) -> int:
    """The same session, with one reference more."""
    call("SSL_SESSION_up_ref", session)
    return session


WAYS: dict[str, Callable[[int], int]] = {
    "i2d_SSL_SESSION, d2i_SSL_SESSION": coded,
    "SSL_SESSION_dup": functools.partial(call, "SSL_SESSION_dup"),
    "SSL_SESSION_up_ref": shared,
}


def seconds(work: Callable[[], object]) -> float:
    """The median of the rounds, for one piece of work."""
    found = []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        for _ in range(TIMES):
            work()
        found.append((time.perf_counter() - begin) / TIMES)
    return statistics.median(found)


def survives(client: int, server: int, copy: Callable[[int], int], flags: int) -> bool:
    """Take a session of a connection, free that, and return whether the session can be resumed.

    :param flags: what is set with SSL_set_shutdown before; 0 for nothing, as when a program gives a connection up.
    """
    ends = connected(client, server)
    original = call("SSL_get1_session", ends[0])
    session = copy(original)
    call("SSL_set_shutdown", ends[0], flags)
    for end in ends:
        call("SSL_free", end)
    ends = connected(client, server, session)
    resumed = bool(call("SSL_session_reused", ends[0]))
    for end in ends:
        call("SSL_free", end)
    return resumed


def in_python(pair: Path) -> tuple[float, float]:
    """Seconds for a new connection object by the ``ssl`` module: without a session, and with one."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(pair)
    client = ssl.create_default_context(cafile=pair)
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    near = client.wrap_bio(to_client, to_server, server_hostname="localhost")
    far = server.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(3):
        for end in (near, far):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                pass
    far.write(b"!")
    near.read(1)
    made = near.session

    def new(session: ssl.SSLSession | None) -> None:
        client.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname="localhost", session=session)

    return seconds(functools.partial(new, None)), seconds(functools.partial(new, made))


def main() -> None:
    """Print all of it."""
    with tempfile.TemporaryDirectory() as folder:
        pair = Path(folder, "pair.pem")
        words = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost"
        words += f" -addext subjectAltName=DNS:localhost -keyout {pair} -out {pair}.crt"
        own = {name: value for name, value in os.environ.items() if name != "LD_LIBRARY_PATH"}  # of this Python alone
        subprocess.run(words.split(), check=True, capture_output=True, env=own)
        pair.write_text(Path(f"{pair}.crt").read_text() + pair.read_text())
        client = call("SSL_CTX_new", call("TLS_client_method"))
        server = call("SSL_CTX_new", call("TLS_server_method"))
        call("SSL_CTX_use_certificate_chain_file", server, bytes(pair))
        call("SSL_CTX_use_PrivateKey_file", server, bytes(pair), 1)
        print(f"Python {platform.python_version()}, {ssl.OPENSSL_VERSION}, {sys.platform}, {platform.machine()}")
        without, given = in_python(pair)
        print(f"SSLContext.wrap_bio: {without * 1e6:.1f} µs, with session= {given * 1e6:.1f} µs")
        ends = connected(client, server)
        session = call("SSL_get1_session", ends[0])
        for name, copy in WAYS.items():
            cost = seconds(lambda copy=copy: call("SSL_SESSION_free", copy(session)))  # type: ignore[misc]
            left = [survives(client, server, copy, flags) for flags in (SENT_SHUTDOWN, 0)]
            print(f"{name}: {cost * 1e6:.2f} µs by ctypes; resumed after SSL_free with and without a shutdown: {left}")


if __name__ == "__main__":
    main()
