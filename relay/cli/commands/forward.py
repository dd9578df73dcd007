"""``relay forward``: listen at one address, connect to another, relay between them."""

from __future__ import annotations

from collections.abc import Sequence

import click

from ...access.senders import NO_HEADERS
from ...addresses.hops import Listen, ProxyListen, listens_at_server
from ...addresses.i2p import I2PListen, I2PRouter, I2PTarget
from ...addresses.mptcp import with_mptcp
from ...addresses.values import TCPAddress
from ...daemon.options import Options
from ...daemon.routed_targets import RoutedTarget, with_bridge, with_bridges
from ...errors import AddressError
from ..addresses import read_hops, read_listen, read_target
from ..i2p_options import read_bridges, sam
from ..options import GroupedCommand, in_workers, options_about, via, with_options
from ..output import failures_reported
from ..run import serve

EXAMPLES = """Examples:

relay forward 8080 db.internal:5432 (127.0.0.1:8080 leads to the database)

relay forward 8080 db.internal:5432 --via ssh://me@bastion (the same from the bastion's network: ssh -L)

relay forward 0.0.0.0:8080 unix:///run/app.sock (every interface; a Unix socket)

relay forward :0 'tls://db.internal:5432?ca=db.pem' (any free port; verified TLS)

relay forward 'tls://0.0.0.0:443?cert=cert.pem&key=key.pem' 127.0.0.1:8080 (ends TLS)

relay forward 8080 i2p://name.i2p (over I2P; addresses that end in .b32.i2p and destinations in base64 as well)

relay forward 5432 db:5432 --via ssh://me@outer --via ssh://me@inner (a database behind two bastions)

relay forward 2222 127.0.0.1:22 --via i2p: --via ssh://me@NAME.b32.i2p (an SSH server that is an I2P destination)

relay forward 8080 i2p://name.i2p --via ssh://me@bastion (the I2P router of another machine)

relay forward 5432 db:5432 --via socks5://proxy:1080 --via ssh://me@bastion (out through a proxy)

relay forward 8080 api:80 --via ssh://me@bastion --warm 2 (two streams are open before their clients come)

relay forward 5432 db1:5432 --target db2:5432 (the second one while the first is down)

relay forward 8080 5432 (port 5432 of this machine)

relay help hops lists the parameters of hops, SSH servers and I2P routers.
"""


@click.command(cls=GroupedCommand, epilog=EXAMPLES)
@click.argument(
    "listen",
    metavar="LISTEN",
    help="8080, :0, HOST:PORT, unix:///PATH, tls://HOST:PORT?cert=FILE, ssh://HOST?listen=:PORT or systemd:NAME. "
    "localhost is 127.0.0.1 alone; [::1]:8080 is the other loopback.",
)
@click.argument(
    "target", metavar="TARGET", help="HOST:PORT, PORT, unix:///PATH, tls://HOST:PORT?ca=FILE or i2p://NAME.i2p[:PORT]"
)
@via
@click.option(
    "--target",
    "others",
    metavar="TARGET",
    multiple=True,
    help="A further target, for clients whose target fails. Repeatable.",
)
@click.option(
    "--policy",
    type=click.Choice(["first", "spread", "fastest"]),
    help="Which of several targets gets a client: the first that is up, the one with the fewest connections, or the "
    "one whose connects take the least time [first].",
)
@click.option(
    "--mptcp",
    is_flag=True,
    help="Use Multipath TCP with clients and targets that have it; not after a hop.",
)
@sam
@options_about("streams")
@options_about("introduction")
@options_about("balancers")
@in_workers
@options_about("clients")
@with_options
def forward(
    listen: str,
    target: str,
    via: Sequence[str],
    others: Sequence[str],
    policy: str | None,
    mptcp: bool,
    sam: Sequence[str],
    options: Options,
) -> None:
    """Listen at LISTEN and relay every connection to TARGET, until SIGINT, SIGTERM or SIGHUP.

    relay binds to 127.0.0.1 unless you give a host, and prints the address. After a signal, open connections may finish
    (--drain); a second signal closes them.

    With --via, the last hop connects to TARGET: it resolves the name, and Unix paths are on that machine.

    relay retries until a server can be reached, at the start and after a loss. It exits only if a retry cannot help (a
    host key, a login, an address in use, a missing file).

    An I2P target is reached through the router on this machine, or the one given with --sam.
    """
    with failures_reported(debug=options.debug):
        where, routed = _addresses(sam, listen, [target, *others], via)
        if mptcp:
            try:
                where, routed = with_mptcp(where, routed)
            except AddressError as error:
                raise AddressError(f"--mptcp: {error}") from None
        (hops, end), *further = routed
        if policy is not None and not further:
            raise click.UsageError("--policy: there is one target; give further ones with --target")
        if options.accept_proxy and listens_at_server(where):
            raise ValueError(f"--accept-proxy: {NO_HEADERS}")
    is_swapped = target.isdigit() and isinstance(where, TCPAddress) and is_name(where.host)
    hint = f"LISTEN comes first: relay forward {target} {listen}" if is_swapped else ""
    serve(
        where,
        end,
        options,
        name="forward",
        title="listening on ",
        via=hops,
        others=further,
        policy=policy or "first",
        hint=hint,
    )


def is_name(host: str) -> bool:
    """Return whether a host is a name other than localhost."""
    return host != "localhost" and ":" not in host and not host.rpartition(".")[2].isdigit()


def _addresses(
    sam: Sequence[str], listen: str, targets: Sequence[str], via: Sequence[str]
) -> tuple[Listen, list[RoutedTarget]]:
    """Return the address to listen on and the targets with their hops, with the SAM bridge in those of I2P.

    :raises AddressError: if one cannot be understood or holds a secret, or if there is a bridge and no address of I2P.
    """
    routes = [read_hops(via, target) for target in targets]
    where = read_listen(listen)
    if isinstance(where, ProxyListen):
        raise AddressError(f"listen address '{where}': the clients of a proxy name their targets; use relay socks")
    ends = [read_target(target, hops) for target, hops in zip(targets, routes, strict=True)]
    bridges = read_bridges(sam)
    used = (where, *ends, *(hop for hops in routes for hop in hops))
    if bridges and not any(isinstance(one, I2PListen | I2PTarget | I2PRouter) for one in used):
        raise AddressError(
            "--sam: neither LISTEN nor TARGET nor a hop is at I2P; leave it out, or use i2p: or i2p://NAME.i2p"
        )
    routed = [with_bridges(bridges, end, hops) for end, hops in zip(ends, routes, strict=True)]
    return with_bridge(bridges, where), [(hops, end) for end, hops in routed]
