"""``relay expose``: publish a local service at a server elsewhere."""

from __future__ import annotations

from typing import Annotated

import typer

from ..parsing import parse_ssh_listen
from .options import Options, Via, with_options
from .output import failures_reported
from .serving import serve

__all__ = ["EXAMPLES", "expose"]

EXAMPLES = """Examples:

relay expose 127.0.0.1:8000 --on ssh://me@server (a free port of the server's loopback leads here)

relay expose 127.0.0.1:8000 --on 'ssh://me@server?listen=0.0.0.0:8080' (every interface, where its sshd allows that)

relay expose unix:///run/app.sock --on 'ssh://me@server?listen=/run/user/1000/app.sock' (Unix sockets at both ends)

relay expose 127.0.0.1:8000 --on ssh://me@inner --via ssh://me@bastion (a server behind another)

relay forward --help tells the parameters of a hop and of the server.
"""


@with_options
def expose(
    target: Annotated[str, typer.Argument(metavar="TARGET", help="HOST:PORT, unix:///PATH or tls://HOST:PORT?ca=FILE")],
    on: Annotated[
        str,
        typer.Option(
            "--on", metavar="SERVER", help="ssh://[USER@]HOST[:PORT][?listen=HOST:PORT], where it is to be published."
        ),
    ],
    via: Via = None,
    *,
    options: Options,
) -> None:
    """Publish TARGET at a server elsewhere, until SIGINT, SIGTERM or SIGHUP (ssh -R).

    The server listens at its own 127.0.0.1, at a port that it chooses, unless listen= says another place.
    Prints where once the server has agreed. When the server is lost and comes back, it is asked again.
    """
    with failures_reported(debug=options.debug):
        parse_ssh_listen(on, "--on")
    serve(on, target, options, name="expose", title="", listen_via=via or ())
