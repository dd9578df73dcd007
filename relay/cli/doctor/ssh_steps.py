"""The checks for the steps of an SSH login: version, key exchange, host key, login."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...addresses.printable import shown
from ...errors import AuthenticationError, HostKeyError
from ...transports.ssh.config.identities import key_type
from ...transports.ssh.config.known_hosts import find, fingerprint
from ...transports.ssh.connection import GREETING, KEY_EXCHANGE, IncompatibleError, Settings
from .recorder import RecordedStep
from .report import Check, Status
from .wording import split


def _check(
    step: RecordedStep, name: str, error: BaseException | None, status: Status, detail: str, **facts: Any
) -> Check:
    advice = ""
    if error is not None:
        detail, advice = split(name, error, step.subject)
    return Check(name, step.subject, Status.OK if error is None else status, detail, advice, step.seconds, facts)


def key_exchange(step: RecordedStep, error: BaseException | None, status: Status) -> list[Check]:
    """The server's version, and the algorithms that both sides agreed on."""
    transport = step.facts["transport"]
    banner = shown(transport.remote_version or "")
    # Without a version of the server, no algorithm was agreed on either.
    if not banner:
        return [_check(step, "ssh version", error, status, "none")]
    version = Check("ssh version", step.subject, Status.OK, banner, facts={"banner": banner})
    names = {
        "kex": transport.kex,
        "host_key": transport.host_key_type,
        "cipher": transport.remote_cipher,
        "mac": transport.remote_mac,
    }
    facts = {name: shown(str(value or "")) for name, value in names.items()}
    detail = ", ".join(value for value in facts.values() if value)
    return [version, _check(step, "key exchange", error, status, detail, **facts)]


def host_key(step: RecordedStep, error: BaseException | None, status: Status) -> list[Check]:
    """The host key's fingerprint, where it was looked for, and what was found there."""
    settings: Settings = step.facts["settings"]
    blob: bytes = step.facts["blob"]
    kind, print_ = key_type(blob), fingerprint(blob)
    names = settings.host_key_names
    entries = [entry for name in names for entry in find(settings.known_hosts, name)]
    known = [str(entry) for entry in entries if entry.blob == blob and not entry.marker]
    facts = {"type": kind, "fingerprint": print_, "looked_in": list(settings.known_hosts), "known": known}
    if error is None and settings.server.hostkey is None and not known:
        detail = f"{kind} {print_} is not known; accept_new trusts it, and relay stores it with its first connection"
        advice = "compare the fingerprint with the server's (ssh-keygen -l on it)"
        return [Check("host key", step.subject, Status.WARNING, detail, advice, step.seconds, facts)]
    where = "pinned by hostkey" if settings.server.hostkey is not None else f"known in {', '.join(known)}"
    return [_check(step, "host key", error, status, f"{kind} {print_}, {where}", **facts)]


def login(step: RecordedStep, error: BaseException | None, status: Status) -> list[Check]:
    """The methods that the server offers, and the credentials that were tried."""
    facts = {name: list(step.facts.get(name, ())) for name in ("offered", "rejected", "accepted")}
    detail = f"by {_listed(facts['accepted'])}; the server offers {_listed(facts['offered']) or 'no other method'}"
    if facts["rejected"]:
        detail += f"; rejected before: {_listed(facts['rejected'])}"
    return [_check(step, "login", error, status, detail, **facts)]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(shown, names))


def client(step: RecordedStep, error: BaseException | None, status: Status) -> list[Check]:
    """A login by the OpenSSH client; the class of its error names the step that failed."""
    if error is None:
        return [_check(step, "login", None, status, "by the OpenSSH client, which has verified the host key")]
    return [_check(step, _failed_step(error), error, status, "")]


def _failed_step(error: BaseException) -> str:
    stage = getattr(error, "stage", "")
    if isinstance(error, HostKeyError):
        return "host key"
    if isinstance(error, AuthenticationError):
        return "login"
    if stage == GREETING or "no SSH server" in str(error):
        return "ssh version"
    if stage == KEY_EXCHANGE or isinstance(error, IncompatibleError):
        return "key exchange"
    if getattr(error, "reason", "") in ("refused", "unreachable", "connect_timeout"):
        return "resolve" if "resolve" in str(error) else "connect"
    return "login"
