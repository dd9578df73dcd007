"""Resume servers at each kind of carrier but SSH, behind a cutter, and the hops that lead to them."""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path
from typing import Any

import trustme
from helpers import WAIT, wait_until
from i2p_world import Routers, address_of
from resume_rig import Cutter

import relay
from relay.addresses.parse import parse_listen
from relay.api.urls import resume_listener
from relay.transports.resume.figures import BUDGET, FAR, NEAR

KINDS = ("tls", "wss", "unix", "exec", "port", "i2p")
_COPY = (
    "import os, socket, sys, threading\n"
    "end = socket.socket(socket.AF_UNIX); end.connect(sys.argv[1])\n"
    "def out():\n"
    "    try:\n"
    "        while data := end.recv(65536):\n"
    "            while data: data = data[os.write(1, data):]\n"
    "    finally: os._exit(0)\n"
    "threading.Thread(target=out).start()\n"
    "try:\n"
    "    while data := os.read(0, 65536): end.sendall(data)\n"
    "finally: os._exit(0)\n"
)


class Carrier:
    """A resume server, and hops to it by two identities, the second of which is another one.

    :param kind: of :data:`KINDS`.
    :param folder: an empty directory.
    :param make_cutter: makes the cutter, with where it listens and where it leads.
    :param bounds: of the sessions of the far end; ``None`` for the usual ones.
    :param routers: real ones; ``None`` for an embedded bridge.
    """

    def __init__(
        self, kind: str, folder: Path, make_cutter: Any = Cutter, bounds: Any = None, routers: Routers | None = None
    ) -> None:
        NEAR.clear()
        FAR.clear()
        self.kind = kind
        self.folder = folder
        self.bridge: Any = None
        self._bounds = bounds
        self._made: list[Any] = []
        self._has_dialed = False
        (folder / "copy.py").write_text(_COPY)
        self._listens = f"unix://{folder}/far.sock"
        if kind in ("tls", "wss"):
            authority = trustme.CA()
            authority.cert_pem.write_to_path(f"{folder}/ca.pem")
            for name in ("localhost", "one", "other"):
                authority.issue_cert(name).private_key_and_cert_chain_pem.write_to_path(f"{folder}/{name}.pem")
            self._path = "/resume" if kind == "wss" else ""
            files = f"cert={folder}/localhost.pem&client_ca={folder}/ca.pem"
            self._listens = f"{kind}://127.0.0.1:0{self._path}?{files}"
        elif kind == "i2p":
            if routers is None:
                self.bridge = relay.testing.SAMBridge()
                self._bridges, more = (self.bridge.sam, self.bridge.sam), ""
                self.keys = {name: Path(f"{folder}/{name}.dat") for name in ("far", "one", "other")}
            else:
                self._bridges, more = (routers.server, routers.client), "&accept=accept"
                self.keys = {"far": routers.server_keys(), "one": routers.client_keys()}
            self._listens = f"i2p:?sam={self._bridges[0]}&keys={self.keys['far']}&in_depth=0&out_depth=0{more}"
        self.start()
        cuts, far = self._ends()
        if kind in ("tls", "wss"):
            self._listens = self._listens.replace(":0", f":{far[1]}", 1)
        self.cutter = make_cutter(cuts, far)

    def _ends(self) -> tuple[Any, Any]:
        """Return where the cutter listens, and where it leads."""
        if self.kind in ("unix", "exec", "port"):
            return f"{self.folder}/near.sock", f"{self.folder}/far.sock"
        return ("127.0.0.1", 0), address_of(self._bridges[1]) if self.kind == "i2p" else self.listener.getsockname()

    def start(self) -> None:
        """Start the far end."""
        self.listener = resume_listener(parse_listen(f"resume:{self._listens}"), bounds=self._bounds)
        self.tunnel = relay.Tunnel(self.listener, relay.dynamic(rules=["*=direct"]), name="far")

    def restart(self) -> None:
        """End the far end as a killed program does, and start another one."""
        self.cutter.is_down = True
        self.cutter.cut()
        sessions = self.listener.sessions._sessions
        wait_until(lambda: not any(far.joint.is_attached for far in tuple(sessions.values())))
        self.tunnel.close()
        self.tunnel.join()
        self.start()
        self.cutter.is_down = False

    def address(self, identity: str = "one") -> str:
        """Return the address of the server, as the hop has it after ``resume:``."""
        if self.kind in ("tls", "wss"):
            files = f"ca={self.folder}/ca.pem&cert={self.folder}/{identity}.pem"
            return f"{self.kind}://localhost:{self.cutter.address[1]}{self._path}?{files}"
        if self.kind == "exec":
            return f"exec:{shlex.join([sys.executable, f'{self.folder}/copy.py', self.cutter.address])}"
        if self.kind == "port":
            return f"port:socat TCP-LISTEN:{{port}},bind=127.0.0.1,fork UNIX-CONNECT:{self.cutter.address}"
        if self.kind == "i2p":
            host, port = self.cutter.address
            tunnels = "in_depth=0&out_depth=0"
            return f"i2p://{self.listener.b32}?sam={host}:{port}&keys={self.keys[identity]}&{tunnels}"
        return f"unix://{self.cutter.address}"

    def hops(self) -> list[str]:
        """Return the hops that lead to the server, and it."""
        return [f"resume:{self.address()}"]

    def dial(self, address: Any) -> Any:
        """Return a stream over the hop."""
        self._has_dialed = True
        dialer = relay.target("{}:{}".format(*address), via=self.hops())
        self._made.append(dialer)
        stream = dialer(deadline=time.monotonic() + WAIT)
        self._made.append(stream)
        stream.socket.settimeout(WAIT)
        return stream

    def carrier(self, identity: str = "one") -> Any:
        """Return a bare carrier, on which nothing has been said."""
        dialer = relay.target(self.address(identity))
        self._made.append(dialer)
        stream = dialer(deadline=time.monotonic() + WAIT)
        self._made.append(stream)
        stream.socket.settimeout(WAIT)
        return stream

    def close(self) -> None:
        for one in reversed(self._made):
            one.close()
        if self._has_dialed:
            wait_until(lambda: BUDGET.offered == BUDGET.held == 0)  # the last words have arrived
        self.tunnel.close()
        self.tunnel.join()
        self.cutter.close()
        wait_until(lambda: BUDGET.offered == BUDGET.held == 0)
        if self.bridge is not None:
            self.bridge.close()
