"""``relay socks``: a proxy whose clients name their targets, such as a browser."""

from __future__ import annotations

import dataclasses
import ipaddress
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from ..address import TCPAddress, UnixAddress, masked
from ..errors import AddressError
from ..hops import ProxyListen, inline_secrets
from ..i2paddress import SAM
from ..listeners.greeting import GreetingListener, login_of
from ..listeners.proxies import listen_proxy
from ..listeners.socks import SOCKSListener
from ..listeners.unix import listen_unix
from ..parsing import parse_listen
from ..senders.dynamic import Dynamic, dynamic
from .i2p import Sam
from .options import Options, Via, with_options
from .output import failures_reported, logged_to_stderr
from .secrets import refuse_secrets
from .serving import listening, over_hops, raise_descriptor_limit, relay_until_signal
from .signals import Signals

__all__ = ["EXAMPLES", "socks"]

logger = logging.getLogger("relay.cli")

EXAMPLES = """Examples:

relay socks 1080 (whatever a client asks 127.0.0.1:1080 for; names in .i2p by the I2P router on this machine)

relay socks 1080 --via ssh://me@bastion (the same from the bastion, which looks names up: ssh -D)

relay socks 1080 --rule '*.corp.example=ssh://me@bastion' --rule '10.0.0.0/8=ssh://me@bastion' --rule '*=direct'

relay socks 1080 --rule '*.i2p=i2p:' --rule '*=socks5://127.0.0.1:9050' (I2P by its router, all else by another proxy)

relay socks http://127.0.0.1:3128 --rule '*:443=direct' (clients of an HTTP proxy, for https:// and nothing else)

relay socks 0.0.0.0:1080 --user guest --password-file FILE (every interface; a user and a password are wanted)

curl --proxy socks5h://127.0.0.1:1080 https://intranet.corp.example/ is a client (socks5:// looks names up itself).

relay forward --help tells the parameters of a hop. A comma between two hops of a rule is followed by a scheme.
"""

Rules = Annotated[
    list[str] | None,
    typer.Option(
        "--rule",
        metavar="PATTERN=WAY",
        help="*.NAME, a network such as 10.0.0.0/8, or *, each with :PORT if wanted; and direct, refuse or HOP,HOP. "
        "The first that matches wins; what none is about goes over --via, else it is refused.",
    ),
]
User = Annotated[str | None, typer.Option("--user", metavar="NAME", help="Who alone is let in, with a password.")]
PasswordFile = Annotated[
    Path | None, typer.Option("--password-file", metavar="FILE", help="Holds the password; nobody else may read it.")
]
PasswordEnv = Annotated[
    str | None, typer.Option("--password-env", metavar="NAME", help="The environment variable with the password.")
]


@with_options
def socks(
    listen: Annotated[
        str,
        typer.Argument(metavar="LISTEN", help="1080, :0, HOST:PORT or unix:///PATH for SOCKS; http://HOST:PORT"),
    ],
    via: Via = None,
    rule: Rules = None,
    user: User = None,
    password_file: PasswordFile = None,
    password_env: PasswordEnv = None,
    sam: Sam = None,
    *,
    options: Options,
) -> None:
    """Be a proxy at LISTEN: relay every client to where it asks, until SIGINT, SIGTERM or SIGHUP.

    SOCKS5 and, without a password, SOCKS4 and 4a; with http:// the CONNECT of an HTTP proxy. It listens on the loopback
    unless another host is written out, and prints where.

    Names are looked up at the end of the way: on the last hop of --via, or of the rule that matches, else here.
    Names in .i2p are looked up by the I2P router on this machine, or the one that --sam tells, unless a rule matches.
    """
    with (
        logged_to_stderr(options.log_format, verbose=options.verbose, debug=options.debug),
        failures_reported(debug=options.debug),
        Signals() as signals,
    ):
        raise_descriptor_limit()
        make_send = _factory(via or (), rule or (), sam or SAM)
        over = over_hops(via or ())
        receive = listening(_opener(listen, user, password_file, password_env), signals)
        if receive is None:
            return
        _warn_if_open(receive)
        options = options.settled(over_i2p=True, at_i2p=False)
        ends = "listening on ", f" → {make_send.target}{over}"
        relay_until_signal(receive, make_send, options, signals, name="socks", ends=ends)


def _factory(via: Sequence[str], rules: Sequence[str], sam: str) -> Dynamic:
    """What leads where each client wants.

    :raises AddressError: if something cannot be understood, or holds a secret.
    """
    made = dynamic(via, rules, sam=sam)
    for rule in made.rules:
        for hop in rule.route or ():
            refuse_secrets(f"rule '{rule.text}=…', hop", str(hop), inline_secrets(hop))
    return made


def _opener(
    text: str, user: str | None, password_file: Path | None, password_env: str | None
) -> Callable[[], GreetingListener]:
    """What listens.

    :raises AddressError: if the address cannot be understood, is not on this machine, or holds a secret.
    :raises ValueError: if the user or the password is missing, or given twice.
    """
    if (user is None) != (password_file is None and password_env is None):
        problem = "there is no user" if user is None else "there is no password"
        raise ValueError(f"{problem}; --user NAME goes with --password-file FILE or --password-env NAME")
    file = str(password_file) if password_file else None
    address = parse_listen(text)
    if isinstance(address, UnixAddress):
        path = address.path
        return lambda: SOCKSListener(listen_unix(path), login_of(user, None, file, password_env))
    if isinstance(address, TCPAddress):
        address = ProxyListen("socks5", address.host, address.port)
    if not isinstance(address, ProxyListen):
        allowed = "allowed are :port, host:port, unix:///path, socks5://host:port and http://host:port"
        raise AddressError(f"listen address '{masked(text)}': a proxy for programs does not listen there; {allowed}")
    refuse_secrets("listen address", text, inline_secrets(address))
    if user is not None:
        if address.user is not None:
            raise ValueError("--user: it is in LISTEN already; once is enough")
        address = dataclasses.replace(address, user=user, password_file=file, password_env=password_env)
    fields = {field.name: getattr(address, field.name) for field in dataclasses.fields(address)}
    return lambda: listen_proxy(**fields)


def _warn_if_open(listener: GreetingListener) -> None:
    """Say so if others than those on this machine are let in without a password."""
    address = listener.address
    if listener.protected or not isinstance(address, tuple) or ipaddress.ip_address(address[0]).is_loopback:
        return
    logger.warning(
        "everybody who can reach %s port %d can use it; --user and --password-file let one user in", *address[:2]
    )
