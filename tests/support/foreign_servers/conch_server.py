"""An SSH server of Twisted Conch for the tests: it only forwards TCP, both ways.

Arguments: the folder with host_key, authorized_keys and password; the user; the port of 127.0.0.1.
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path
from typing import Any

from twisted.conch import avatar
from twisted.conch.checkers import InMemorySSHKeyDB, SSHPublicKeyChecker
from twisted.conch.interfaces import IConchUser
from twisted.conch.ssh import factory, forwarding, keys
from twisted.cred.checkers import InMemoryUsernamePasswordDatabaseDontUse
from twisted.cred.portal import IRealm, Portal
from twisted.internet import reactor
from twisted.internet.error import CannotListenError
from zope.interface import implementer

FOLDER, USER, PORT = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])


class User(avatar.ConchUser):
    """A client that has logged in. Conch brings the forwards; a listener of a client's is the server's business."""

    def __init__(self) -> None:
        super().__init__()
        self._listeners: dict[tuple[str, int], Any] = {}
        self.channelLookup[b"direct-tcpip"] = forwarding.openConnectForwardingClient

    def global_tcpip_forward(self, data: bytes) -> Any:
        host, port = forwarding.unpackGlobal_tcpip_forward(data)
        # As in Conch's own command, what it offers later bears the port that was asked for, also when that was 0.
        kind = forwarding.SSHListenServerForwardingChannel
        offers = forwarding.SSHListenForwardingFactory(self.conn, (host, port), kind)
        try:
            listening = reactor.listenTCP(port, offers, interface=host)
        except CannotListenError:
            return 0
        taken = listening.getHost().port
        self._listeners[host, taken] = listening
        return 1 if port else (1, struct.pack(">L", taken))

    def global_cancel_tcpip_forward(self, data: bytes) -> int:
        listening = self._listeners.pop(forwarding.unpackGlobal_tcpip_forward(data), None)
        if listening is not None:
            listening.stopListening()
        return int(listening is not None)

    def logout(self) -> None:
        for listening in self._listeners.values():
            listening.stopListening()


@implementer(IRealm)
class Realm:
    """Gives a user to each login."""

    def requestAvatar(self, name: Any, mind: object, *interfaces: object) -> Any:  # noqa: N802  (Twisted's name)
        user = User()
        return IConchUser, user, user.logout


class Server(factory.SSHFactory):
    """Conch's server with the keys of the test."""

    def __init__(self) -> None:
        key = keys.Key.fromFile(str(FOLDER / "host_key"))
        self.privateKeys = {key.sshType(): key}
        self.publicKeys = {key.sshType(): key.public()}
        authorized = keys.Key.fromFile(str(FOLDER / "authorized_keys"))
        passwords = InMemoryUsernamePasswordDatabaseDontUse()
        passwords.addUser(USER.encode(), (FOLDER / "password").read_bytes())
        checkers = [passwords, SSHPublicKeyChecker(InMemorySSHKeyDB({USER.encode(): [authorized]}))]
        self.portal = Portal(Realm(), checkers)


listener = reactor.listenTCP(PORT, Server(), interface="127.0.0.1")
print("Server listening on", listener.getHost(), file=sys.stderr, flush=True)
reactor.run()
