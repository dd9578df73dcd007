"""``relay forward``: listen at one address, connect to another, relay between them."""

from __future__ import annotations

from typing import Annotated

import typer

from .options import Options, Via, with_options
from .serving import serve

__all__ = ["EXAMPLES", "forward"]

EXAMPLES = """Examples:

relay forward 8080 db.internal:5432 (127.0.0.1:8080 leads to the database)

relay forward 8080 db.internal:5432 --via ssh://me@bastion (the same from the bastion's network: ssh -L)

relay forward 0.0.0.0:8080 unix:///run/app.sock (every interface; a Unix socket)

relay forward :0 'tls://db.internal:5432?ca=db.pem' (any free port; verified TLS)

relay forward 'tls://0.0.0.0:443?cert=cert.pem&key=key.pem' 127.0.0.1:8080 (ends TLS)

A hop's parameters follow a question mark: ssh://me@bastion?keyfile=FILE, password_file=, password_env=,
passphrase_file=, passphrase_env=, known_hosts=, hostkey=SHA256:…, accept_new=yes, config=FILE, keepalive=SECONDS|none,
compress=yes|no, backend=paramiko|openssh. What none of them says, your SSH configuration and agent do.
"""


@with_options
def forward(
    listen: Annotated[
        str,
        typer.Argument(
            metavar="LISTEN",
            help="8080, :0, HOST:PORT, unix:///PATH, tls://HOST:PORT?cert=FILE or ssh://HOST?listen=:PORT",
        ),
    ],
    target: Annotated[str, typer.Argument(metavar="TARGET", help="HOST:PORT, unix:///PATH or tls://HOST:PORT?ca=FILE")],
    via: Via = None,
    *,
    options: Options,
) -> None:
    """Listen at LISTEN and relay every connection to TARGET, until SIGINT, SIGTERM or SIGHUP.

    It listens on the loopback unless another host is written out, and prints where.
    A signal lets the connections finish (--drain); a second one ends them at once.

    With --via, TARGET is reached from the last hop: names are looked up there, and Unix paths are there.
    A hop that is lost comes back by itself; a host key or a login that is refused ends the command.
    """
    serve(listen, target, options, name="forward", title="listening on ", via=via or ())
