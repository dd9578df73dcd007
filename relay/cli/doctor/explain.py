"""The meaning of the recorded steps of a route: one or two checks for each, with advice where one failed.

The texts of failures are those of relay's own errors, ``<what>: <problem>; <what to do>``. The advice here is for the
steps whose errors have none.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from typing import Any

from ...addresses.printable import shown
from ...errors import AuthenticationError, ConnectError
from ...eventloop.sockets import Endpoint, format_address
from ...streams.trace import Stage
from . import ssh_steps
from .certificates import EXPIRES_SOON, certificate_facts
from .network import interface_of, source_of
from .recorder import RecordedStep
from .report import Check, Status
from .wording import ADVICE, split

# Seconds after which a step counts as failed, and what is said then.
LIMITS: dict[Stage, tuple[float, str]] = {
    Stage.RESOLVE: (10.0, "DNS lookup timed out; check the name server"),
    Stage.CONNECT: (10.0, "no answer in time; is the host up and the port open? A firewall may drop the packets"),
    Stage.TLS: (10.0, "no TLS handshake in time; does the port speak TLS?"),
    Stage.PROXY: (30.0, "no answer from the proxy in time; check that it is the right kind of proxy"),
    Stage.WEBSOCKET: (15.0, "no answer to the request in time; check that it is a WebSocket server"),
    Stage.KEY_EXCHANGE: (15.0, "no answer in time; check that it is an SSH server and alive"),
    Stage.HOST_KEY: (15.0, "not verified in time; check that the known_hosts files can be read"),
    Stage.LOGIN: (20.0, "the login was not finished in time; check the server's log"),
    Stage.SSH_CLIENT: (40.0, "the login was not finished in time; run ssh -v to see why"),
    Stage.CHANNEL: (20.0, "the server has not connected in time; check that the target is up and not firewalled there"),
    Stage.PROGRAM: (
        26.0,
        "it does not listen in time; run it by hand, with a port of your own, and look at what it says",
    ),
    # It has the others to the server in it, and those of I2P take minutes; --timeout ends it before.
    Stage.RESUME: (300.0, "no answer of the resume server in time; check that one listens there"),
    Stage.BRIDGE: (12.0, "no answer in time; check that this is the SAM port of a router"),
    Stage.SESSION: (
        180.0,
        "the router has built no tunnels in time; it may have just started or be firewalled: look at its console",
    ),
    Stage.DESTINATION: (
        75.0,
        "not found in time; check that its server is up, and that the clocks of both routers are right",
    ),
}

_FOR_EVER = 1e9  # seconds; a far end that keeps streams without a limit of time says so many

_UNIX = {
    os.strerror(errno.ENOENT): "start the service that makes the socket, or correct the path",
    os.strerror(errno.EACCES): "check the permissions of the socket and of the directories above it",
    "connection refused": "no program listens there any more: start the service",
}


def limit_error(step: RecordedStep) -> BaseException:
    """Return the error of a step that takes longer than its limit: that of its last attempt, if there was one."""
    return step.noted or ConnectError(f"{step.subject}: {LIMITS[step.stage][1]}", reason="connect_timeout")


def checks_of(step: RecordedStep, error: BaseException | None, status: Status) -> list[Check]:
    """Return the checks that show a step.

    :param step: it has ended, or its time was over.
    :param error: why it failed; ``None`` if it did not.
    :param status: of the check that failed.
    """
    return _EXPLAINERS[step.stage](step, error, status)


def _failed(step: RecordedStep, name: str, error: BaseException, status: Status, facts: Any = None) -> Check:
    detail, advice = split(name, error, step.subject)
    return Check(name, step.subject, status, detail, advice, step.seconds, facts or {})


def _ok(step: RecordedStep, name: str, detail: str, **facts: Any) -> Check:
    return Check(name, step.subject, Status.OK, detail, "", step.seconds, facts)


def _resolve(step: RecordedStep, error: BaseException | None, status: Status) -> list[Check]:
    if error is not None:
        return [_failed(step, "resolve", error, status)]
    hosts = list(dict.fromkeys(str(endpoint.address[0]) for endpoint in step.facts["endpoints"]))
    ipv4 = [host for host in hosts if ":" not in host]
    ipv6 = [host for host in hosts if ":" in host]
    return [_ok(step, "resolve", ", ".join(hosts) or "no address", ipv4=ipv4, ipv6=ipv6)]


def _connect(step: RecordedStep, error: BaseException | None, status: Status) -> list[Check]:
    facts = step.facts
    if error is None:
        checks = []
        if "local" in facts:
            local, interface = facts["local"], facts["interface"]
            detail = f"from {local}" + (f" ({interface})" if interface else "")
            checks.append(
                Check("route", step.subject, Status.OK, detail, facts={"local": local, "interface": interface})
            )
        return [*checks, _ok(step, "connect", f"connected to {facts.get('peer') or step.subject}")]
    if step.subject.startswith("unix:"):
        detail, _ = split("connect", error, step.subject)
        return [Check("connect", step.subject, status, detail, _UNIX.get(detail, ""), step.seconds)]
    route, is_reachable = _route(step.subject, facts.get("endpoints", ()), status)
    return [*route, *([_failed(step, "connect", error, status)] if is_reachable else [])]


def _route(subject: str, endpoints: Sequence[Endpoint], status: Status) -> tuple[list[Check], bool]:
    """Find out from where this machine would connect, for a connect that failed."""
    found: list[str] = []
    for endpoint in endpoints:
        if not isinstance(endpoint.address, tuple):
            return [], True
        try:
            local = source_of(endpoint)
        except OSError as error:
            found.append(f"{format_address(endpoint.address)}: {error.strerror}")
        else:
            interface = interface_of(local)
            detail = f"from {local}" + (f" ({interface})" if interface else "")
            facts = {"local": local, "interface": interface, "unreachable": found}
            return [Check("route", subject, Status.OK, detail, facts=facts)], True
    if not found:
        return [], True
    return [Check("route", subject, status, "; ".join(found), ADVICE["route"], facts={"unreachable": found})], False


def _tls(step: RecordedStep, error: BaseException | None, status: Status) -> list[Check]:
    facts = {name: step.facts.get(name, "") for name in ("version", "cipher", "alpn", "servername", "library")}
    certificate = certificate_facts(step.facts.get("chain", ()))
    code = getattr(getattr(error, "__cause__", None), "verify_code", None)
    if error is not None and code is None:
        return [_failed(step, "tls", error, status, facts)]
    if error is not None:
        detail, advice = split("certificate", error, step.subject)
        detail += f"; it is for {_listed(certificate)}, {_validity(certificate)}" if certificate else ""
        if code in (20, 21) and certificate.get("chain_length") == 1 and not certificate.get("self_signed"):
            advice = (
                "the server sends no certificate of the authorities between its own and the root: install the whole "
                f"chain there (fullchain.pem); or {advice}"
            )
        return [Check("certificate", step.subject, status, detail, advice, step.seconds, certificate)]
    alpn = f"ALPN {facts['alpn']}" if facts["alpn"] else "no ALPN"
    checks = [_ok(step, "tls", f"{facts['version']}, {facts['cipher']}, {alpn}, {facts['library']}", **facts)]
    if certificate:
        soon = certificate["days_left"] < EXPIRES_SOON
        detail = f"verified for {facts['servername']}; it is for {_listed(certificate)}, {_validity(certificate)}"
        advice = "renew it, and look at why that did not happen by itself" if soon else ""
        result = Status.WARNING if soon else Status.OK
        checks.append(Check("certificate", step.subject, result, detail, advice, facts=certificate))
    return checks


def _listed(certificate: dict[str, Any]) -> str:
    return ", ".join(certificate["names"]) or "no name"


def _validity(certificate: dict[str, Any]) -> str:
    left, until = certificate["days_left"], certificate["days_until_valid"]
    if until > 0:
        return f"valid from {certificate['not_before']}, in {until:g} days by the clock of this machine"
    if left < 0:
        return f"expired on {certificate['not_after']}, {-left:g} days ago by the clock of this machine"
    return f"valid until {certificate['not_after']}, for {left:.0f} days"


def _proxy(step: RecordedStep, error: BaseException | None, status: Status) -> list[Check]:
    place, user = step.facts["place"], step.facts["user"]
    if error is None:
        login = f"logged in as {shown(user)}, " if user else "no login, "
        return [_ok(step, "proxy request", f"{login}connection to {place} granted")]
    if isinstance(error, AuthenticationError):
        return [_failed(step, "proxy login", error, status)]
    about_target = str(error).rpartition("): ")[2].startswith(f"{place}:") or str(error).startswith(f"{place}:")
    return [_failed(step, "proxy request" if about_target else "proxy", error, status)]


def _websocket(step: RecordedStep, error: BaseException | None, status: Status) -> list[Check]:
    if error is not None:
        return [_failed(step, "websocket", error, status)]
    subprotocol = step.facts.get("subprotocol")
    spoken = f"speaks {subprotocol}" if subprotocol else "speaks plain messages, so that no end goes alone"
    return [_ok(step, "websocket", f"{step.facts['path']} is there, and {spoken}", subprotocol=subprotocol)]


def _channel(step: RecordedStep, error: BaseException | None, status: Status) -> list[Check]:
    server = step.facts["server"]
    allowed = Check("forwarding", server, Status.OK, f"the server forwards to {step.subject}")
    if error is None:
        return [allowed, _ok(step, "target", f"connected by {server}")]
    reason = getattr(error, "reason", "")
    if reason == "denied":
        detail, advice = split("forwarding", error, step.subject)
        return [Check("forwarding", server, status, detail, _sshd_policy(advice), step.seconds)]
    return [*([allowed] if reason == "refused" else []), _failed(step, "target", error, status)]


def _sshd_policy(advice: str) -> str:
    if "AllowTcpForwarding" not in advice:
        return advice
    return "set AllowTcpForwarding yes in its sshd_config (for a Unix socket AllowStreamLocalForwarding), and let PermitOpen list the target"  # noqa: E501


def _program(step: RecordedStep, error: BaseException | None, status: Status) -> list[Check]:
    if error is not None:
        return [_failed(step, "program", error, status)]
    place = step.facts.get("place", "")
    return [_ok(step, "program", f"listens at {place}, which the kernel says is its own", place=place)]


def _resume(step: RecordedStep, error: BaseException | None, status: Status) -> list[Check]:
    if error is not None:
        return [_failed(step, "resume", error, status)]
    kept = step.facts.get("kept", 0.0)
    how_long = f"for {kept:g} s" if kept < _FOR_EVER else "without a limit of time"
    return [_ok(step, "resume", f"a relay there keeps a stream {how_long} while there is no connection", kept=kept)]


def _bridge(step: RecordedStep, error: BaseException | None, status: Status) -> list[Check]:
    if error is None:
        version = shown(str(step.facts.get("version") or "unknown"))
        return [_ok(step, "sam bridge", f"answers, SAM {version}", version=version)]
    result = getattr(error, "result", "")
    name = "sam login" if isinstance(error, AuthenticationError) else "sam version" if result == "NOVERSION" else ""
    return [_failed(step, name or "sam bridge", error, status)]


def _session(step: RecordedStep, error: BaseException | None, status: Status) -> list[Check]:
    if error is not None:
        return [_failed(step, "i2p session", error, status)]
    return [_ok(step, "i2p session", "created; its tunnels are built")]


def _destination(step: RecordedStep, error: BaseException | None, status: Status) -> list[Check]:
    if error is not None:
        return [_failed(step, "destination", error, status)]
    return [_ok(step, "destination", "the router has found it")]


_EXPLAINERS: dict[Stage, Callable[[RecordedStep, BaseException | None, Status], list[Check]]] = {
    Stage.RESOLVE: _resolve,
    Stage.CONNECT: _connect,
    Stage.TLS: _tls,
    Stage.PROXY: _proxy,
    Stage.WEBSOCKET: _websocket,
    Stage.KEY_EXCHANGE: ssh_steps.key_exchange,
    Stage.HOST_KEY: ssh_steps.host_key,
    Stage.LOGIN: ssh_steps.login,
    Stage.SSH_CLIENT: ssh_steps.client,
    Stage.CHANNEL: _channel,
    Stage.PROGRAM: _program,
    Stage.RESUME: _resume,
    Stage.BRIDGE: _bridge,
    Stage.SESSION: _session,
    Stage.DESTINATION: _destination,
}
