"""The test of the address that a tunnel listens on: nothing is left listening, and no client is accepted."""

from __future__ import annotations

import dataclasses
import errno
import os
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ...addresses.hops import Listen, Route, listens_at_tor
from ...addresses.i2p import I2PListen
from ...addresses.resume import place_of
from ...addresses.ssh import SSHListen
from ...addresses.values import SystemdListen, TCPAddress, UnixAddress, is_loopback, refuse_onion
from ...transports.i2p.key_file import read
from ...transports.tcp import tcp
from ..running import process_at
from .probe import RouteProbe
from .report import Check, Status
from .wording import split

if TYPE_CHECKING:
    from ...addresses.tor import TorListen

_REMEDIES = {
    errno.EADDRNOTAVAIL: "this machine has no such address: correct it, or listen on 127.0.0.1",
    errno.EACCES: "ports below 1024 need CAP_NET_BIND_SERVICE: use another port, or AmbientCapabilities= of systemd",
}
_IN_USE = "another program uses it, or a relay without a control socket; ss -ltnp shows which"

MakeProbe = Callable[[Route], RouteProbe]


def check_listen(
    where: Listen, before: Route, make_probe: MakeProbe, deadline: float, open_remote: bool
) -> list[Check]:
    """Check the address that a tunnel listens on.

    :param where: the address.
    :param before: the hops to it.
    :param make_probe: makes the probe of a route.
    :param deadline: monotonic seconds.
    :param open_remote: whether to listen on an SSH server or on I2P for a moment.
    """
    where = place_of(where)
    if isinstance(where, SSHListen):
        return _on_server(where, before, make_probe, deadline, open_remote=open_remote)
    if isinstance(where, I2PListen):
        return _at_i2p(where, before, make_probe, deadline, open_remote=open_remote)
    if listens_at_tor(where):
        return [_at_tor(where, deadline, open_remote=open_remote)]
    if isinstance(where, UnixAddress):
        return [_unix(where.path)]
    if isinstance(where, SystemdListen):
        return []  # systemd has opened it, for the service alone
    host, port = getattr(where, "host", ""), getattr(where, "port", 0)
    return [_tcp(TCPAddress(host, port))]


def _tcp(place: TCPAddress) -> Check:
    """Bind the address, without listening on it."""
    subject = str(place)
    try:
        refuse_onion(place.host)
        family, _, _, _, address = socket.getaddrinfo(place.host, place.port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            # As the tunnel's own socket will have it: connections in TIME_WAIT are no reason to call the address taken.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        detail = error.strerror or str(error)
        if error.errno == errno.EADDRINUSE:
            return _in_use(subject, detail)
        return Check("listen", subject, Status.FAILED, detail, _REMEDIES.get(error.errno or 0, "correct the address"))
    return Check("listen", subject, Status.OK, "free")


def _in_use(subject: str, detail: str) -> Check:
    """Report who has the address: a relay that runs, or another program."""
    if pid := process_at(subject):
        return Check("listen", subject, Status.OK, f"the running relay (process {pid}) listens here")
    return Check("listen", subject, Status.WARNING, detail, _IN_USE)


def _unix(path: str) -> Check:
    folder = os.path.dirname(path) or "."
    subject = f"unix://{path}"
    if not os.path.isdir(folder):
        return Check(
            "listen", subject, Status.FAILED, f"there is no directory {folder}", "make it, or correct the path"
        )
    if not os.access(folder, os.W_OK | os.X_OK):
        detail = f"no permission to make a socket in {folder}"
        return Check("listen", subject, Status.FAILED, detail, "choose a directory of your own, or change its mode")
    if os.path.lexists(path):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            # A listener whose backlog is full would block the connect for as long as it accepts none.
            probe.setblocking(False)
            # The kernel's answer for a socket file without a listener. relay replaces such a file, so it is no problem.
            if probe.connect_ex(path) == errno.ECONNREFUSED:
                return Check("listen", subject, Status.OK, "a socket without a listener is there; relay replaces it")
        return _in_use(subject, "it exists")
    return Check("listen", subject, Status.OK, "free")


def _at_i2p(
    where: I2PListen, before: Route, make_probe: MakeProbe, deadline: float, *, open_remote: bool
) -> list[Check]:
    """Create a session with another destination: one with the same keys would end that of a running relay."""
    router = dataclasses.replace(where.router, keys=None, session="")
    probe = make_probe((*before, router))
    try:
        checks = probe.test(None, deadline)
        path = where.router.keys
        if any(check.status is Status.FAILED for check in checks):
            return checks
        if open_remote:
            checks = [*checks, probe.prove(I2PListen(router, where.accept), deadline)]
        if path is None:
            return checks
        if not os.path.exists(os.path.expanduser(path)):
            detail = "it does not exist; relay creates it with its first session"
            status, advice = Status.SKIPPED, ""
            if where.standby:
                detail, status = "it does not exist", Status.FAILED
                advice = "copy it from the other machine, or make a key with relay keys new"
            return [*checks, Check("key file", path, status, detail, advice)]
        key = read(path)
        checks = [*checks, probe.published(key.b32, deadline)]
        if where.standby:
            checks.append(probe.other_relay(key, deadline))
        return checks
    finally:
        probe.close()


def _at_tor(where: TorListen, deadline: float, *, open_remote: bool) -> Check:
    """Log in at the control port, and publish a service with a new key if the user has requested that."""
    from ...transports.tor.control import ControlConnector
    from ...transports.tor.listener import TorListener

    begun = time.monotonic()
    subject = str(where)
    try:
        if open_remote:
            with TorListener(dataclasses.replace(where, keys=None, session=""), subject) as listener:
                listener.start(max(0.1, deadline - begun))
        else:
            ControlConnector(subject, where, TCPAddress("127.0.0.1", 9)).try_login(deadline)
    except OSError as error:
        detail, advice = split("tor control", error, subject)
        return Check("tor control", subject, Status.FAILED, detail, advice, time.monotonic() - begun)
    detail = "tor takes an onion service" if open_remote else "logged in; --listen tests an onion service"
    return Check("tor control", subject, Status.OK, detail, seconds=time.monotonic() - begun)


def _on_server(
    where: SSHListen, before: Route, make_probe: MakeProbe, deadline: float, *, open_remote: bool
) -> list[Check]:
    """Log in to the server, and listen there at a free port if the user has requested that."""
    probe = make_probe((*before, where.server))
    try:
        checks = probe.test(None, deadline)
        if any(check.status is Status.FAILED for check in checks):
            return checks
        if not open_remote or not isinstance(where.place, TCPAddress):
            detail = f"not tested at {where.server}; sshd needs AllowTcpForwarding"
            if isinstance(where.place, TCPAddress) and not is_loopback(where.place.host):
                detail += ", and GatewayPorts for clients of other machines"
            return [*checks, Check("remote listen", str(where.place), Status.SKIPPED, f"{detail}; --listen tests it")]
        return [*checks, *_remote(where, probe, deadline)]
    finally:
        probe.close()


def _remote(where: SSHListen, probe: RouteProbe, deadline: float) -> list[Check]:
    place: Any = where.place
    begun = time.monotonic()
    subject = f"{place.host} at {where.server}"
    try:
        with probe.listening(TCPAddress(place.host, 0), deadline) as (bound, server):
            seconds = time.monotonic() - begun
            detail = f"the server listens, at port {bound.port} for this test"
            checks = [Check("remote listen", subject, Status.OK, detail, seconds=seconds)]
            if not is_loopback(place.host):
                checks.append(_from_outside(subject, TCPAddress(server, bound.port), deadline))
            return checks
    except OSError as error:
        detail, advice = split("remote listen", error, str(where.server))
        return [Check("remote listen", subject, Status.FAILED, detail, advice, time.monotonic() - begun)]


def _from_outside(subject: str, place: TCPAddress, deadline: float) -> Check:
    """Connect to the port from here: sshd does not say when it listens on its loopback only."""
    begun = time.monotonic()
    try:
        # A firewall drops packets without an answer; five seconds are enough for one that lets them pass.
        tcp(place.host, place.port)(deadline=min(deadline, begun + 5.0)).close()
    except OSError as error:
        detail, _ = split("gateway ports", error, str(place))
        advice = "set GatewayPorts clientspecified in its sshd_config, and open the port in its firewall"
        unreachable = f"{place} is not reachable from this machine: {detail}"
        return Check("gateway ports", subject, Status.FAILED, unreachable, advice, time.monotonic() - begun)
    detail = f"{place} is reachable from this machine"
    return Check("gateway ports", subject, Status.OK, detail, seconds=time.monotonic() - begun)
