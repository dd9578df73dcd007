"""``relay expose``: publish a local service at a server elsewhere, or at I2P."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ...addresses.i2p import I2PListen
from ...addresses.parse import parse_elsewhere
from ...errors import AddressError
from ..i2p_options import Sam, with_session
from ..options import Options, Via, with_options
from ..output import failures_reported
from ..run import serve

__all__ = ["EXAMPLES", "expose"]

EXAMPLES = """Examples:

relay expose 127.0.0.1:8000 --on ssh://me@server (a free port of the server's loopback leads here)

relay expose 127.0.0.1:8000 --on 'ssh://me@server?listen=0.0.0.0:8080' (every interface, where its sshd allows that)

relay expose unix:///run/app.sock --on 'ssh://me@server?listen=/run/user/1000/app.sock' (Unix sockets at both ends)

relay expose 127.0.0.1:8000 --on ssh://me@inner --via ssh://me@bastion (a server behind another)

relay expose 127.0.0.1:8000 --on i2p (an I2P destination, the same every time)

relay expose 127.0.0.1:8000 --on i2p --keys site.dat --allow friends.txt (for friends alone)

relay expose 127.0.0.1:8000 --on 'i2p:?in_depth=1&out_depth=1' --transient (a new destination; shorter tunnels)

relay help hops tells the parameters of hops, SSH servers and I2P routers.
"""

Keys = Annotated[
    Path | None, typer.Option("--keys", metavar="FILE", help="I2P: file with the destination's private key.")
]
Session = Annotated[
    str | None,
    typer.Option(
        "--session", metavar="NAME", help="I2P: name under which the destination is saved [the text of TARGET]."
    ),
]
Transient = Annotated[bool, typer.Option("--transient", help="I2P: use a new destination and do not save it.")]
Allow = Annotated[
    list[str] | None,
    typer.Option(
        "--allow", metavar="DESTINATION", help="I2P: allow only this destination, or those in a file. Repeatable."
    ),
]
Deny = Annotated[
    list[str] | None,
    typer.Option("--deny", metavar="DESTINATION", help="I2P: reject this destination, or those in a file. Repeatable."),
]


@with_options
def expose(
    target: Annotated[
        str, typer.Argument(metavar="TARGET", help="HOST:PORT, PORT, unix:///PATH or tls://HOST:PORT?ca=FILE")
    ],
    on: Annotated[
        str,
        typer.Option(
            "--on",
            metavar="SERVER",
            help="Where to publish it: ssh://[USER@]HOST[:PORT][?listen=HOST:PORT], or i2p[:?PARAMETERS].",
        ),
    ],
    via: Via = None,
    sam: Sam = None,
    keys: Keys = None,
    session: Session = None,
    transient: Transient = False,
    allow: Allow = None,
    deny: Deny = None,
    *,
    options: Options,
) -> None:
    """Publish TARGET on an SSH server or on I2P, until SIGINT, SIGTERM or SIGHUP.

    An SSH server (ssh -R) listens on its own 127.0.0.1, on a port that it chooses, unless listen= gives another
    address. relay prints the address once the server listens.

    A server or router that cannot be reached is tried again until it can be, at the start and after a loss. Only what a
    retry cannot fix (a host key, a login, an address in use, a missing file) ends the command.

    On I2P, relay prints the destination, and a line that begins with "published" once a stream from outside has
    arrived. The destination stays the same for the same TARGET, or with the same --session or --keys.
    """
    with failures_reported(debug=options.debug):
        place = parse_elsewhere(on, "--on")
        kept = {"keys": str(keys) if keys else None, "session": session}
        lists = [("allow", entry) for entry in allow or ()] + [("deny", entry) for entry in deny or ()]
        if isinstance(place, I2PListen):
            on = with_session(on, target, **kept, transient=transient, names=[("sam", sam), *lists])
        elif transient or sam or any(kept.values()) or lists:
            given = [("sam", sam), *kept.items(), *lists]
            wrong = next((name for name, value in given if value), "transient")
            raise AddressError(f"--{wrong}: it goes with --on i2p alone; an ssh:// address has its own parameters")
    serve(on, target, options, name="expose", title="", listen_via=via or ())
