"""The running relay that ``relay ctl`` is about, found by its control socket."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from ..addresses.printable import printable
from ..operations.client import REJECTED, Client, ClientError
from ..operations.runtime import control_sockets
from .output import describe_error, print_error

__all__ = ["connected", "names_of_tunnels", "process_at", "tunnel_names"]

_MISTAKES = (400, 404, 409, REJECTED)
_SHORT = 0.5  # seconds for a completion
_OPEN = ("listening", "paused")  # the states of a tunnel that has its listener
_GONE = (errno.ECONNREFUSED, errno.ENOENT)


@contextmanager
def connected(path: str | None, *, rejection_is_failure: bool = False) -> Iterator[Client]:
    """Connect to the running relay, and report its errors as those of the command.

    :param path: of its control socket; ``None`` for the only one that runs.
    :param rejection_is_failure: whether a file that the relay rejects is its failure; else it is the user's mistake.
    :raises ValueError: if none runs, or several do.
    :raises OSError: for an error of the relay, or of the connection to it.
    """
    client = Client(path or _only_one())
    try:
        yield client
    except ClientError as error:
        *first, text = map(printable, error.problems)
        for line in first:
            print_error(line)
        if error.status in _MISTAKES and not (error.status == REJECTED and rejection_is_failure):
            raise ValueError(text) from error
        raise OSError(text) from error
    except TimeoutError as error:
        raise OSError(f"control socket {client.path}: no answer in time; is that relay stopped?") from error
    except OSError as error:
        if error.errno in _GONE:
            raise ValueError(f"control socket {client.path}: no relay listens there; start relay up") from error
        raise OSError(f"control socket {client.path}: {describe_error(error)}") from error
    finally:
        client.close()


def _only_one() -> str:
    found = [(path, status) for path in control_sockets() if (status := _status(path)) is not None]
    if not found:
        raise ValueError("no relay with a control socket is running; start relay up, or name a socket with --control")
    if len(found) > 1:
        listed = "; ".join(f"--control {path} ({status['config'] or status['pid']})" for path, status in found)
        raise ValueError(f"{len(found)} relays are running; choose one: {printable(listed)}")
    return found[0][0]


def _status(path: str) -> Any:
    """Return the facts about a running relay; ``None`` if none answers."""
    client = Client(path)
    try:
        return client.get("/instance")
    except (OSError, ClientError):
        return None
    finally:
        client.close()


def process_at(address: str) -> int | None:
    """Return the process id of the relay that listens at an address; ``None`` if none says so.

    :param address: of a listener, as ``relay ctl list`` shows it.
    """
    for path in control_sockets():
        client = Client(path, _SHORT)
        try:
            if any(one["listen"] == address and one["state"] in _OPEN for one in client.get("/tunnels")["tunnels"]):
                return int(client.get("/instance")["pid"])
        except (OSError, ClientError, KeyError, TypeError, ValueError):
            continue
        finally:
            client.close()
    return None


def tunnel_names(path: str | None) -> list[str]:
    """Return the names of the running tunnels, for a completion; none if they cannot be had at once."""
    names = []
    for socket in [path] if path else control_sockets():
        client = Client(socket, _SHORT)
        try:
            names += [str(tunnel["name"]) for tunnel in client.get("/tunnels")["tunnels"]]
        except (OSError, ClientError, KeyError, TypeError):
            continue
        finally:
            client.close()
    return names


def names_of_tunnels(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Complete the name of a tunnel; Click calls it."""
    return [name for name in tunnel_names(context.params.get("control")) if name.startswith(incomplete)]
