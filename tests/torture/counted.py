"""The command ``relay``, with a Unix socket that answers the number of its Python objects.

``python counted.py SOCKET ARGUMENTS…``
"""

from __future__ import annotations

import gc
import socket
import sys
import threading

from relay.cli import main


def _answer(listening: socket.socket) -> None:
    while True:
        asking, _ = listening.accept()
        with asking:
            gc.collect()
            asking.sendall(b"%d" % len(gc.get_objects()))


if __name__ == "__main__":
    path = sys.argv.pop(1)
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(path)
    listening.listen()
    threading.Thread(target=_answer, args=[listening], daemon=True).start()
    sys.exit(main())
