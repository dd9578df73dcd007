"""A program that listens, and behaves as ``kubectl port-forward`` does: ``port_double.py WHERE [TARGET] [WORD …]``.

It connects each client to TARGET (``host:port``), or repeats what the client sends. A stream that breaks ends all of
it: "error: lost connection to pod", status 1. The words:

- ``late=FIFO``: it listens once the FIFO is opened for writing; ``never``: it does not listen;
- ``control=PATH``: it listens (``l``) and stops that (``c``) as the bytes at a Unix socket say, and answers with each;
- ``holds=PATH``: it gets a socket that listens over the Unix socket there, and keeps a copy of it;
- ``child``: a child of it listens, and goes on without it; ``background``: the same, and it ends at once;
- ``stubborn``: it ignores SIGTERM; ``fails``: it ends with status 3; ``elsewhere``: it listens at another port, too.
"""

import contextlib
import os
import signal
import socket
import sys
import threading


def listen(where):
    if where.isdigit():
        return socket.create_server(("127.0.0.1", int(where)))
    made = socket.socket(socket.AF_UNIX)
    made.bind(where)
    made.listen()
    return made


def lose():
    os.write(2, b"error: lost connection to pod\n")
    os._exit(1)


def copy(source, sink):
    try:
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        lose()


def relay(client, target):
    os.write(2, b"Handling connection\n")
    if target is None:
        with client, contextlib.suppress(OSError):
            while data := client.recv(65536):
                client.sendall(data)
        return
    host, _, port = target.rpartition(":")
    try:
        far = socket.create_connection((host, int(port)))
    except OSError:
        lose()
    with client, far:
        up = threading.Thread(target=copy, args=(client, far), daemon=True)
        up.start()
        copy(far, client)
        up.join()


def accept(listening, target):
    with contextlib.suppress(OSError):  # it was closed
        while True:
            threading.Thread(target=relay, args=(listening.accept()[0], target), daemon=True).start()


def obey(path, where, target):
    control, listening = socket.socket(socket.AF_UNIX), None
    control.connect(path)
    while order := control.recv(1):
        if order == b"l":
            listening = listen(where)
            threading.Thread(target=accept, args=(listening, target), daemon=True).start()
        else:
            listening.shutdown(socket.SHUT_RDWR)
            listening.close()
        control.sendall(order)


def main(where, *words):
    options = dict(word.partition("=")[::2] for word in words)
    target = next((word for word in words if ":" in word), None)
    if "stubborn" in options:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if "fails" in options:
        sys.exit("error: unable to forward port\nsee the log: 3")
    if "late" in options:
        open(options["late"], "rb").close()
    if ("child" in options or "background" in options) and os.fork():
        if "background" not in options:
            os.wait()
        return
    if "never" in options:
        signal.pause()
    if "holds" in options:
        given = socket.socket(socket.AF_UNIX)
        given.connect(options["holds"])
        options["socket"] = socket.recv_fds(given, 1, 1)
        given.sendall(b"x")
        given.recv(1)
    if "control" in options:
        return obey(options["control"], where, target)
    if "elsewhere" in options:
        options["elsewhere"] = socket.create_server(("127.0.0.1", 0))
    listening = listen(where)
    os.write(2, f"Forwarding from {where}, process {os.getpid()}\n".encode())
    accept(listening, target)


main(*sys.argv[1:])
