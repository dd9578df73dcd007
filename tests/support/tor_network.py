"""A Tor network of the tests' own, on the loopback: a directory authority, some relays, and a client.

Nothing of it meets the real network: each tor knows this authority alone. Entering it takes about 20 seconds, most of
them spent waiting, because an authority votes every ten seconds at most, and tor looks around once a second.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from helpers import WAIT, reserved_port, wait_until

from relay.process import DEVNULL, end, start

_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"
PROGRAM, GENCERT = shutil.which("tor", path=_PATH), shutil.which("tor-gencert", path=_PATH)
LOOPBACK = "127.0.0.1"
NAME = "here.example"  # a name that only tor knows, of the loopback
RELAYS = 4
SLOW = 90.0  # seconds for what takes one on an idle machine
# Everything may be on the loopback, and no tor waits for the network to settle.
COMMON = """
AddressDisableIPv6 1
AssumeReachable 1
DirAllowPrivateAddresses 1
EnforceDistinctSubnets 0
LearnCircuitBuildTimeout 0
ExitPolicyRejectPrivate 0
ShutdownWaitLength 0
TestingTorNetwork 1
TestingV3AuthInitialDistDelay 2
TestingV3AuthInitialVoteDelay 2
TestingV3AuthInitialVotingInterval 10
V3AuthDistDelay 2
V3AuthNIntervalsValid 1000
V3AuthVoteDelay 2
V3AuthVotingInterval 10
"""
RELAY = """
Address 127.0.0.1
ExitPolicy accept *:*
ExitRelay 1
SocksPort 0
"""
AUTHORITY = """
AuthoritativeDirectory 1
ContactInfo none
TestingDirAuthVoteExit *
TestingDirAuthVoteGuard *
TestingDirAuthVoteHSDir *
TestingMinExitFlagThreshold 0
V3AuthoritativeDirectory 1
"""


class Tor:
    """One tor.

    :param folder: for its files; it is made.
    :param lines: of its torrc.
    """

    def __init__(self, folder: Path, lines: str) -> None:
        self.folder = folder
        (folder / "keys").mkdir(parents=True, mode=0o700)
        folder.chmod(0o700)
        self.torrc = folder / "torrc"
        self.log = folder / "log"
        self._process: Any = None
        self.configure(lines)

    def configure(self, lines: str) -> None:
        """Write its torrc."""
        self.torrc.write_text(f"DataDirectory {self.folder}\nLog notice file {self.log}\n{COMMON}{lines}")

    @property
    def argv(self) -> list[str]:
        """The command line."""
        return [str(PROGRAM), "--quiet", "--defaults-torrc", os.devnull, "-f", str(self.torrc)]

    def start(self) -> Tor:
        """Start it, with a new log."""
        self.log.unlink(missing_ok=True)
        self._process = start(self.argv, stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL)
        return self

    def wait_for(self, text: str) -> None:
        """Wait until its log has a text."""

        def has_come() -> bool:
            assert self._process.poll() is None, f"tor has ended: {self.last_lines()}"
            return text in self.said()

        wait_until(has_come, SLOW)

    def said(self) -> str:
        """The text of its log."""
        return self.log.read_text() if self.log.exists() else ""

    def last_lines(self) -> str:
        """The end of its log."""
        return "\n".join(self.said().splitlines()[-20:])

    def kill(self) -> None:
        """End it at once. Idempotent."""
        process, self._process = self._process, None
        if process is not None:
            end(process, WAIT, group=True)


class TorClient(Tor):
    """A tor without a relay, with a SOCKS port and a control port that stay its own while it is down.

    :param folder: for its files; it is made.
    :param directory: the line of the authority.
    :param stack: releases the ports, and ends it.
    """

    def __init__(self, folder: Path, directory: str, stack: ExitStack) -> None:
        self._ports = [stack.enter_context(reserved_port()) for _ in range(2)]
        self.socks, self.control = (f"{LOOPBACK}:{port}" for port in self._ports)
        super().__init__(
            folder,
            f"{directory}SocksPort {self.socks} ExtendedErrors\nMapAddress {NAME} {LOOPBACK}\n"
            f"ControlPort {self.control}\nCookieAuthentication 1\n",
        )
        stack.callback(self.kill)

    @property
    def hop(self) -> str:
        """It as a hop."""
        return f"tor:?socks={self.socks}"

    def start(self) -> TorClient:
        """Start it; returns when it can make circuits."""
        super().start()
        self.wait_for("Bootstrapped 100%")
        return self

    @contextmanager
    def controlled(self) -> Iterator[Callable[[str], str]]:
        """Yield a function that sends it a command (control-spec), and returns the answer."""
        cookie = (self.folder / "control_auth_cookie").read_bytes().hex()
        with socket.create_connection((LOOPBACK, self._ports[1]), WAIT) as control:
            with control.makefile("rw", newline="\r\n") as lines:

                def ask(command: str) -> str:
                    lines.write(f"{command}\n")
                    lines.flush()
                    answer = lines.readline()
                    while not re.match("[0-9]{3} ", answer.rpartition("\n")[0].rpartition("\n")[2] or answer):
                        answer += lines.readline()
                    return answer

                ask(f"AUTHENTICATE {cookie}")
                yield ask


class TorNetwork:
    """The authority and the relays. :func:`tor_network` makes them.

    :param folder: for the files; a directory that exists.
    :param stack: closes it.
    """

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._ports = {name: stack.enter_context(reserved_port()) for name in ("or", "dir", *map(str, range(RELAYS)))}
        self._stack = stack
        self._clients = 0
        self._folder = folder
        self._authority = Tor(folder / "authority", "")
        keys = self._authority.folder / "keys"
        argv = [str(GENCERT), "--create-identity-key", "--passphrase-fd", "0", "-m", "1", "-a", self._at("dir")]
        for option, name in (("-i", "identity_key"), ("-s", "signing_key"), ("-c", "certificate")):
            argv += [option, str(keys / f"authority_{name}")]
        subprocess.run(argv, input=b"\n", capture_output=True, timeout=SLOW, check=True)
        certificate = (keys / "authority_certificate").read_text()
        v3ident = certificate.partition("\nfingerprint ")[2].partition("\n")[0]
        own = f"Nickname authority\nORPort {self._at('or')} IPv4Only\nDirPort {self._at('dir')}\n{RELAY}"
        self._authority.configure(f"{own}DirAuthority x {LOOPBACK}:1 {'f' * 40}\n")
        words = subprocess.run([*self._authority.argv, "--list-fingerprint"], stdout=subprocess.PIPE, check=True).stdout
        place = f"orport={self._ports['or']} no-v2 v3ident={v3ident} {self._at('dir')}"
        self._directory = f"DirAuthority authority {place} {b''.join(words.split()[-10:]).decode()}\n"
        self._own = own + self._directory + AUTHORITY

    def _at(self, name: str) -> str:
        return f"{LOOPBACK}:{self._ports[name]}"

    def client(self, stack: ExitStack) -> TorClient:
        """Start a client.

        :param stack: ends it.
        """
        self._clients += 1
        return TorClient(self._folder / f"client{self._clients}", self._directory, stack).start()

    def start(self) -> None:
        """Start everything; returns when the relays know each other."""
        authority = self._authority
        authority.configure(self._own)
        self._stack.callback(authority.start().kill)
        relays = [
            Tor(
                self._folder / f"relay{number}",
                f"Nickname relay{number}\nORPort {self._at(str(number))} IPv4Only\n{RELAY}{self._directory}",
            )
            for number in range(RELAYS)
        ]
        for tor in relays:
            self._stack.callback(tor.start().kill)
        consensus = authority.folder / "cached-microdesc-consensus"
        # The first one may lack a relay that was late.
        wait_until(lambda: consensus.exists() and consensus.read_text().count("\nr ") == RELAYS + 1, SLOW)
        # They start again without one of their own: so they ask for it at once, and not after a growing pause. With one
        # that lacks most relays, which they may have got already, they would find no guards, and go on with that.
        for tor in relays:
            tor.kill()
            for old in tor.folder.glob("cached-*consensus"):
                old.unlink()
            tor.start()
        for tor in relays:
            tor.wait_for("Bootstrapped 75%")  # it has the directory


@contextmanager
def tor_network(folder: Path) -> Iterator[TorNetwork]:
    """Run a network; skips the test where there is no tor.

    :param folder: for the files; a directory that exists.
    """
    if PROGRAM is None or GENCERT is None:
        pytest.skip("there is no tor (Debian: tor)")
    with ExitStack() as stack:
        made = TorNetwork(folder, stack)
        made.start()
        yield made
