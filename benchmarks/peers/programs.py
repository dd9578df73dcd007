"""Programs that use the package: own factories, workers, and a relay in a program whose interpreter is busy.

Started as ``python -m benchmarks.peers.programs callable|thread|spawn|workers-N|beside PORT TARGET_PORT CORE``;
the busy thread has CORE for itself.
"""

from __future__ import annotations

import os
import socket
import sys
import threading

import relay

HOST = "127.0.0.1"


def own_callable(port: int, target: int) -> None:
    """A tunnel with the plainest callable there is, not marked in any way."""
    listener = socket.create_server((HOST, port), backlog=4096)
    with relay.Tunnel(listener, lambda: socket.create_connection((HOST, target)), timeout=None) as tunnel:
        tunnel.join()


def in_a_thread(port: int, target: int, core: int) -> None:
    """A tunnel beside a busy thread of the same interpreter."""
    listener = socket.create_server((HOST, port), backlog=4096)
    with relay.Tunnel(listener, relay.tcp(HOST, target), timeout=None) as tunnel:
        stay_busy(core)
        tunnel.join()


def spawned(port: int, target: int, core: int) -> None:
    """The same in a child process."""
    with relay.spawn(f"{HOST}:{port}", f"{HOST}:{target}") as tunnel:
        stay_busy(core)
        tunnel.join()


def in_workers(port: int, target: int, workers: int) -> None:
    """A tunnel in worker processes."""
    with relay.spawn(f"{HOST}:{port}", f"{HOST}:{target}", workers=workers) as tunnel:
        tunnel.join()


def beside(port: int, core: int) -> None:
    """A busy program that relays nothing, for the command to run beside; it listens to show that it runs."""
    with socket.create_server((HOST, port)):
        stay_busy(core)
        threading.Event().wait()


def stay_busy(core: int) -> None:
    """Start a thread that never releases the interpreter by itself."""

    def spin() -> None:
        os.sched_setaffinity(0, {core})  # of this thread alone
        while True:
            pass

    threading.Thread(target=spin, daemon=True).start()


def main() -> None:
    kind, *numbers = sys.argv[1:]
    port, target, core = map(int, numbers)
    if kind == "callable":
        own_callable(port, target)
    elif kind == "thread":
        in_a_thread(port, target, core)
    elif kind == "spawn":
        spawned(port, target, core)
    elif kind.startswith("workers-"):
        in_workers(port, target, int(kind.removeprefix("workers-")))
    else:
        beside(port, core)


if __name__ == "__main__":
    main()
