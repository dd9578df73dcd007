"""The running relay that ``relay ctl`` is about, found by its control socket."""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator
from contextlib import contextmanager

import click

from ..addresses.printable import printable
from ..daemon.client import REJECTED, Client, ClientError
from ..daemon.failures import describe_error
from ..daemon.runtime import control_sockets
from ..extras import missing
from .output import print_error

_MISTAKES = (400, 404, REJECTED)  # not 409: the state of the relay, which may change
_SHORT = 0.5  # seconds for a completion
_SEARCH = 2.0  # seconds for all sockets that are found to say what listens there
_LEAST = 0.1  # seconds for each of them, if one has used up that time
_OPEN = ("listening", "paused")  # the states of a tunnel that has its listener
_GONE = (errno.ECONNREFUSED, errno.ENOENT)
_SILENT, _FORBIDDEN = "no answer", "permission denied"  # what is known of a relay, if not its file


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
    except (TimeoutError, BlockingIOError) as error:  # the latter: so many wait that the listen backlog is full
        raise OSError(f"control socket {client.path}: no answer in time; is that relay stopped?") from error
    except OSError as error:
        if error.errno in _GONE:
            raise ValueError(f"control socket {client.path}: no relay listens there; start relay up") from error
        raise OSError(f"control socket {client.path}: {describe_error(error)}") from error
    finally:
        client.close()


def _only_one() -> str:
    """Return the path of the control socket of the only relay that runs.

    One that does not answer is running, too: else a command that is meant for it would act on another one. One of
    another user is meant only if there is no own one.
    """
    until = time.monotonic() + _SEARCH
    found = [(path, name) for path in control_sockets() if (name := _name(path, until)) is not None]
    found = [one for one in found if one[1] != _FORBIDDEN] or found
    if not found:
        remedy = missing("status") or "start relay up, or name a socket with --control"
        raise ValueError(f"no relay with a control socket is running; {remedy}")
    if len(found) > 1:
        listed = "; ".join(f"--control {path} ({name})" for path, name in found)
        raise ValueError(f"{len(found)} relays are running; choose one: {printable(listed)}")
    return found[0][0]


def _name(path: str, until: float) -> str | None:
    """Return the file or the process ID of the relay at a socket, or why it is not known.

    :param path: of the socket.
    :param until: the monotonic time until which to wait for an answer.
    :returns: ``None`` if no relay listens there.
    """
    client = Client(path, max(_LEAST, until - time.monotonic()))
    try:
        status = client.get("/instance")
        return str(status["config"] or status["pid"])
    except (ConnectionError, FileNotFoundError, ClientError, KeyError, TypeError):  # or it is another program's
        return None
    except PermissionError:
        return _FORBIDDEN
    except OSError:
        return _SILENT
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
