"""Each cell of the README's comparison that says yes or no is what the program itself does, here and now."""

import contextlib
import fcntl
import os
import re
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys

import i2pd
import pytest
from documents import README, ROOT
from helpers import WAIT, TLSEnd, ending, exchange, is_gone, receive_all, refusing, reserved_port, wait_until
from warm_relay import RELAY

import relay
from relay.testing import SAMBridge

HOST = "127.0.0.1"
PATIENCE = 3.0  # seconds for which a target lets its client wait for the answer; socat has 0.5
PATH = f"{os.environ.get('PATH', '')}:/usr/sbin"
PROGRAMS = {"`ssh -L`, autossh": "autossh", "socat": "socat", "HAProxy": "haproxy"}

TABLE = README.split("\n## Compared with other tools\n")[1].split("\n## ")[0]
(_, *TOOLS), _, *ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")] for line in TABLE.splitlines() if line.startswith("|")
]
CELLS = [(row, tool, cell) for row, *cells in ROWS for tool, cell in zip(TOOLS, cells, strict=True) if cell != "–"]

TIMES = "".join(f"    timeout {one} 60s\n" for one in ("connect", "client", "server"))
HAPROXY = f"defaults\n    mode tcp\n{TIMES}listen bench\n"


class World:
    """A port for the tool, a target that the test plays itself, and a server of SSH."""

    def __init__(self, stack, folder=None, certificates=None, server=None):
        self.stack, self.folder, self.certificates, self.server = stack, folder, certificates, server
        self.port = stack.enter_context(reserved_port())
        self.target, self.to = self.listen()

    def listen(self):
        """A target, and its address."""
        listening = self.stack.enter_context(socket.create_server((HOST, 0)))
        listening.settimeout(WAIT)
        return listening, f"{HOST}:{listening.getsockname()[1]}"

    def run(self, *argv):
        """Start a program that ends with the test; returns once it listens."""
        output = self.folder / "output"
        with output.open("w") as file:
            options = {"stdout": file, "stderr": file, "env": {**os.environ, "PATH": PATH}, "cwd": ROOT}
            process = subprocess.Popen(list(map(str, argv)), stdin=subprocess.DEVNULL, **options)
        self.stack.callback(process.wait, WAIT)
        self.stack.callback(process.terminate)
        wait_until(lambda: not is_gone((HOST, self.port)) or process.poll() is not None)
        assert process.poll() is None, output.read_text()

    def haproxy(self, *lines, bind=""):
        """Write a file of HAProxy; the words that start it."""
        file = self.folder / "haproxy.cfg"
        file.write_text(HAPROXY + "".join(f"    {line}\n" for line in (f"bind {HOST}:{self.port} {bind}", *lines)))
        return "haproxy", "-W", "-db", "-S", self.folder / "control", "-f", file

    def forward(self, tool):
        """Start a tool that leads from the port to the target."""
        port, server = self.port, self.server
        if tool.startswith("relay"):
            self.run(RELAY, "forward", port, self.to, *(["--via", server.url] if tool == "relay over SSH" else []))
        elif tool == "sshtunnel":
            words = [port, self.target.getsockname()[1], server.port, server.user, server.keyfile, server.known_hosts]
            self.run(sys.executable, "-m", "benchmarks.peers.ssh_programs", tool, *words)
        elif tool == "socat":
            self.run("socat", f"TCP4-LISTEN:{port},bind={HOST},fork,reuseaddr", f"TCP4:{self.to}")
        elif tool == "HAProxy":
            self.run(*self.haproxy(f"server one {self.to}"))
        else:
            options = ["-F", os.devnull, f"-oUserKnownHostsFile={server.known_hosts}", "-i", server.keyfile, "-N"]
            words = ["-p", server.port, "-L", f"{HOST}:{port}:{self.to}", f"{server.user}@{HOST}"]
            self.run("autossh", "-M", "0", *options, *words)

    def client(self):
        return self.stack.enter_context(socket.create_connection((HOST, self.port), WAIT))

    def accept(self, listening=None):
        made = self.stack.enter_context((listening or self.target).accept()[0])
        made.settimeout(WAIT)
        return made

    def connect(self):
        """A client and the other end of its way, once both directions work."""
        client = self.client()
        far = self.accept()
        exchange(client, far)
        return client, far

    def reached(self, client, *others):
        """Return the target that a client reaches; ``None`` if its connection ends instead."""
        at = first_of(client, self.target, *others)
        if at is not client:
            exchange(client, self.accept(at))
        return None if at is client else at


class OverI2P(World):
    """The same over the tunnels that two routers of i2pd have of their own."""

    def __init__(self, stack, network):
        self.stack, self.target, self._network = stack, network.target, network

    def forward(self, tool):
        pass  # they run already

    def reload(self):
        """Give the service another target, and let its router read the file again; returns that target."""
        router = self._network.router(2)
        other, started = (self.stack.enter_context(self._network.namespace.socket()) for _ in range(2))
        other.bind((HOST, 20002))
        other.listen()
        other.settimeout(WAIT)
        file = router.folder / "tunnels.conf"
        before = file.read_text()
        self.stack.callback(file.write_text, before)
        name, options = i2pd.client_tunnel("new", 20003, i2pd.address_of(router.folder / "service.dat"))
        more = "".join(f"{key} = {value}\n" for key, value in options.items())
        file.write_text(before.replace("port = 20000", "port = 20002") + f"[{name}]\n{more}")
        os.kill(router.pid, signal.SIGHUP)
        wait_until(lambda: started.connect_ex((HOST, 20003)) == 0)  # it has read the file
        return other

    def client(self):
        made = self.stack.enter_context(self._network.namespace.socket())
        made.settimeout(WAIT)
        made.connect((HOST, 20001))
        return made


@pytest.fixture(scope="module")
def routers(tmp_path_factory):
    if i2pd.PROGRAM is None:
        pytest.skip("there is no i2pd (Debian: i2pd)")
    network = i2pd.Network(tmp_path_factory.mktemp("i2pd"), routers=2, exploratory=0)
    near, far = network.router(1), network.router(2)
    address = i2pd.make_keys(far.folder / "service.dat")
    far.configure(i2pd.server_tunnel("service", far.folder / "service.dat", 20000))
    near.configure(i2pd.client_tunnel("client", 20001, address))
    with network, network.namespace.socket() as network.target:
        network.target.bind((HOST, 20000))
        network.target.listen()
        network.target.settimeout(WAIT)

        def is_found():  # i2pd ends the first clients: it does not know the destination yet
            with contextlib.ExitStack() as stack:
                world = OverI2P(stack, network)
                return world.reached(world.client())

        wait_until(is_found)
        yield network


def first_of(*sockets):
    """The socket that can be read first."""
    ready, _, _ = select.select(sockets, [], [], WAIT)
    assert ready, "nothing came"
    return ready[0]


def half_close(world, tool):
    world.forward(tool)
    client, far = world.connect()
    client.shutdown(socket.SHUT_WR)
    if first_of(client, far) is client or receive_all(far) or select.select([client], [], [], PATIENCE)[0]:
        return False
    far.sendall(b"answer")
    far.close()
    return receive_all(client) == b"answer"


def reset(world, tool):
    world.forward(tool)
    client, far = world.connect()
    far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    far.close()
    return ending(client) == "reset"


def urgent(world, tool):
    world.forward(tool)
    client, far = world.connect()
    far.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
    client.send(b"!", socket.MSG_OOB)
    client.sendall(b"end")
    data, is_urgent = b"", False
    while not data.endswith(b"end"):
        first_of(far)
        is_urgent |= any(fcntl.ioctl(far, 0x8905, bytes(4)))  # SIOCATMARK
        data += far.recv(1 if is_urgent else 100)
    return is_urgent


def reconnects(world, tool):
    world.forward("relay over SSH" if tool == "relay" else tool)
    client, _ = world.connect()
    world.server.kill()
    ending(client)
    try:
        waiting = world.client()
    except ConnectionRefusedError:
        return False
    world.server.start()
    return world.reached(waiting) is not None


def tls(world, tool):
    (ca, cert, key), target = world.certificates, f"localhost:{world.target.getsockname()[1]}"
    if tool == "relay":
        world.run(RELAY, "forward", f"tls://{HOST}:{world.port}?cert={cert}&key={key}", f"tls://{target}?ca={ca}")
    elif tool == "socat":
        listen = f"OPENSSL-LISTEN:{world.port},bind={HOST},fork,reuseaddr,cert={cert},key={key},verify=0"
        world.run("socat", listen, f"OPENSSL:{target},pf=ip4,cafile={ca}")
    else:
        (world.folder / "both.pem").write_bytes(cert.read_bytes() + key.read_bytes())
        server = f"server one {world.to} ssl verify required ca-file {ca} sni str(localhost)"
        world.run(*world.haproxy(server, bind=f"ssl crt {world.folder}/both.pem"))
    client = TLSEnd(world.client(), world.certificates.client())
    far = TLSEnd(world.accept(), world.certificates.server(), server_side=True)
    return exchange(client, far) is None


def reload(world, tool):
    if tool == "i2pd":
        before = world.connect()
        other = world.reload()
        return world.reached(world.client(), other) is other and exchange(*before) is None
    (other, new), file, control = world.listen(), world.folder / "relay.toml", world.folder / "control"
    text = f'control = "{control}"\n[tunnels.t]\nlisten = "{world.port}"\ntarget = "{{}}"\n'
    file.write_text(text.format(world.to))
    world.run(RELAY, "up", file) if tool == "relay" else world.forward(tool)
    before = world.connect()
    if tool == "relay":
        file.write_text(text.format(new))
        subprocess.run([RELAY, "ctl", "--control", control, "reload"], check=True, stdout=subprocess.DEVNULL)
    else:
        world.haproxy(f"server one {new}")
        with socket.socket(socket.AF_UNIX) as master:
            wait_until(lambda: master.connect_ex(str(control)) == 0)  # it may not listen yet when its worker does
            master.sendall(b"reload\n")
            receive_all(master)
    wait_until(lambda: world.reached(world.client(), other) is other)
    return exchange(*before) is None


def fails_over(world, tool):
    with refusing() as (host, port):
        if tool == "relay":
            world.run(RELAY, "forward", world.port, f"{host}:{port}", "--target", world.to)
        else:
            servers = f"server one {host}:{port}", f"server two {world.to}"
            world.run(*world.haproxy("option redispatch 1", *servers))  # without it, it ends half of its clients
        return all(world.connect() for _ in range(4))


def works(world, tool):
    if tool != "relay":
        world.forward(tool)
        return bool(world.connect())
    target = world.target.getsockname()[1]
    with SAMBridge() as bridge, relay.TunnelServer("", target, samaddr=bridge.sam) as server:
        with relay.TunnelClient("", world.port, server.dest, samaddr=bridge.sam):
            return bool(world.connect())


PROBES = {
    "a half-close is kept": half_close,
    "a reset stays a reset": reset,
    "TCP's urgent data stays urgent (`ftp`, `telnet`)": urgent,
    "the port stays open while SSH reconnects": reconnects,
    "TLS for clients and to the target": tls,
    "a reload changes the target, open connections go on": reload,
    "the next target if one is down": fails_over,
    "I2P": works,
    "a Python library": works,
}


def is_true(world, row, tool, cell):
    return PROBES[row](world, tool) is (re.match(r"(yes|no)\b", cell)[0] == "yes")


@pytest.mark.parametrize(("row", "tool", "cell"), [one for one in CELLS if one[1] != "i2pd"])
def test_a_cell_is_true(tmp_path, certificates, make_sshd, row, tool, cell):
    if shutil.which(PROGRAMS.get(tool, "sh"), path=PATH) is None:
        pytest.skip(f"there is no {PROGRAMS[tool]} (Debian: {PROGRAMS[tool]})")
    with contextlib.ExitStack() as stack:
        assert is_true(World(stack, tmp_path, certificates, make_sshd()), row, tool, cell)


@pytest.mark.parametrize(("row", "tool", "cell"), [one for one in CELLS if one[1] == "i2pd"])
def test_a_cell_of_i2pd_is_true(routers, row, tool, cell):
    with contextlib.ExitStack() as stack:
        assert is_true(OverI2P(stack, routers), row, tool, cell)


def test_every_row_is_tried():
    assert {row for row, *_ in CELLS} == {row for row, *_ in ROWS} == set(PROBES)
