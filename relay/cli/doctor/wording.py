"""The problem and the advice of an error, whose form is ``<what>: <problem>; <what to do>``."""

from __future__ import annotations

from ...daemon.failures import describe_error

ADVICE: dict[str, str] = {
    "route": "check the network of this machine: its addresses, its default route, a VPN that is down",
    "connect": "check the host and the port",
    "target": "check that the target is up, and that the last hop can reach it",
    "forwarding": "allow it in the server's sshd_config: AllowTcpForwarding, PermitOpen",
    "proxy request": "check the target's name and port, and the rules of the proxy",
    "proxy login": "check the user and the password",
    "proxy": "check the port and the scheme of the proxy: socks5, http, https or wss",
    "websocket": "check the host and the path of the address",
    "resolve": "check the spelling and the name server",
    "tls": "check that the port speaks TLS",
    "certificate": "renew the certificate, or name its authority with ca=",
    "ssh version": "check that the port is that of an SSH server",
    "key exchange": "look at the log of the server; another backend may help: ?backend=openssh",
    "host key": "compare the fingerprint with the server's",
    "login": "look at the log of the server",
    "remote listen": "set AllowTcpForwarding yes in the server's sshd_config, and look at PermitListen",
    "program": "run it by hand, with a port of your own, and look at what it says",
    "resume": "check that a resume server listens there, and who may use it",
    "sam bridge": "check that a router with SAM is there",
    "i2p session": "look at the log of the router",
    "published": "look at the router's console: its clock, its peers, and if it is firewalled",
    "standby": "look at the log of the router",
    "destination": "check the address, or the router's address book; a b32 address needs no address book",
    "first bytes": "look at the log of the target",
}

_KEPT = {"login": 3}  # parts of an error, separated by "; ", that are no advice


def split(name: str, error: BaseException, subject: str) -> tuple[str, str]:
    """Return the problem and the advice of an error.

    :param name: of the step.
    :param error: one of relay's.
    :param subject: what was tested, which the text need not repeat.
    """
    text = describe_error(error) if isinstance(error, Exception) else str(error)
    parts = text.removeprefix(f"{subject}: ").split("; ")
    kept = _KEPT.get(name, 1)
    return "; ".join(parts[:kept]), "; ".join(parts[kept:]) or ADVICE.get(name, "")
