"""``relay expose``: publish a local service at a server elsewhere, or at I2P."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from ...addresses.hops import listens_at_tor
from ...addresses.i2p import I2PListen
from ...daemon.options import Options
from ...daemon.routed_targets import with_bridge, with_session
from ...errors import AddressError
from ..addresses import read_hops, read_server, read_target
from ..i2p_options import read_bridges, sam
from ..options import GroupedCommand, options_about, via, with_options
from ..output import failures_reported
from ..run import serve

EXAMPLES = """Examples:

relay expose 127.0.0.1:8000 --on ssh://me@server (a free port of the server's loopback leads here)

relay expose 127.0.0.1:8000 --on 'ssh://me@server?listen=0.0.0.0:8080' (every interface, where its sshd allows that)

relay expose unix:///run/app.sock --on 'ssh://me@server?listen=/run/user/1000/app.sock' (Unix sockets at both ends)

relay expose 127.0.0.1:8000 --on ssh://me@inner --via ssh://me@bastion (a server behind another)

relay expose 127.0.0.1:8000 --on i2p (an I2P destination, the same every time)

relay expose 127.0.0.1:8000 --on i2p --keys site.dat --allow friends.txt (for friends alone)

relay expose 127.0.0.1:8000 --on tor (an onion service, the same every time; needs tor's control port)

relay expose 127.0.0.1:8000 --on 'i2p:?in_depth=1&out_depth=1' --transient (a new destination; shorter tunnels)

relay help hops lists the parameters of hops, SSH servers and I2P routers.
"""


@click.command(cls=GroupedCommand, epilog=EXAMPLES)
@click.argument("target", metavar="TARGET", help="HOST:PORT, PORT, unix:///PATH or tls://HOST:PORT?ca=FILE")
@click.option(
    "--on",
    required=True,
    metavar="SERVER",
    help="Where to publish it: ssh://[USER@]HOST[:PORT][?listen=HOST:PORT], or i2p[:?PARAMETERS] or tor[:?PARAMETERS].",
)
@via
@sam
@click.option("--keys", metavar="FILE", type=click.Path(path_type=Path), help="I2P, Tor: file with the private key.")
@click.option("--session", metavar="NAME", help="I2P, Tor: name under which the key is saved [the text of TARGET].")
@click.option("--transient", is_flag=True, help="I2P, Tor: use a new address and do not save it.")
@options_about("streams")
@options_about("introduction")
@options_about("clients")
@with_options
def expose(
    target: str,
    on: str,
    via: Sequence[str],
    sam: Sequence[str],
    keys: Path | None,
    session: str | None,
    transient: bool,
    options: Options,
) -> None:
    """Publish TARGET on an SSH server, on I2P or on Tor, until SIGINT, SIGTERM or SIGHUP.

    An SSH server (ssh -R) listens on its own 127.0.0.1, on a port that it chooses, unless listen= gives another
    address. relay prints the address once the server listens.

    A server or router that cannot be reached is tried again until it can be, at the start and after a loss. Only what a
    retry cannot fix (a host key, a login, an address in use, a missing file) ends the command.

    On I2P, relay prints the destination, and a line that begins with "published" once a stream from outside has
    arrived. The destination stays the same for the same TARGET, or with the same --session or --keys. So does the
    address on Tor, which relay prints once tor has the service; clients reach it some seconds later.
    """
    with failures_reported(debug=options.debug):
        where = read_server(on)
        end = read_target(target)
        hops = read_hops(via, on)
        stored = {"keys": str(keys) if keys else None, "session": session}
        if isinstance(where, I2PListen):
            where = with_bridge(read_bridges(sam), where)
            where = with_session(where, end, **stored, transient=transient)
        elif sam:
            raise AddressError("--sam: only for --on i2p; other addresses have their own parameters")
        elif listens_at_tor(where):
            where = with_session(where, end, **stored, transient=transient)
            if hops:
                raise AddressError("--via: tor connects to relay on this machine; leave it out")
        elif transient or any(stored.values()):
            wrong = next((name for name, value in stored.items() if value), "transient")
            raise AddressError(f"--{wrong}: only for --on i2p and tor; an ssh:// address has its own parameters")
    serve(where, end, options, name="expose", title="", listen_via=hops)
