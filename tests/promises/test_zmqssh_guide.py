"""The three examples of pyzmq's guide to tunnels, as they stand there but for the import, on three hosts.

The client's network is another one than that of the server's LAN, where the target is::

    client 192.0.2.1 -- 192.0.2.2 server 10.0.1.1 -- 10.0.1.2 target
"""

import os
import shutil

import pytest
from helpers import WAIT
from namespace import Namespace
from sshd import Sshd
from zmq_world import User, program

from relay.process import DEVNULL, PIPE

IMPORT = "from relay.compat import zmqssh as ssh\n"

SAME_LAN = 'sock.connect("tcp://10.0.1.2:5555")'
THROUGH_A_SERVER = IMPORT + 'ssh.tunnel_connection(sock, "tcp://10.0.1.2:5555", "server")'
ONLY_ON_LOCALHOST = IMPORT + 'ssh.tunnel_connection(sock, "tcp://127.0.0.1:5555", "10.0.1.2")'

CLIENT = """
import zmq
context = zmq.Context()
sock = context.socket(zmq.REQ)
sock.rcvtimeo = {time}
sock.linger = 0
{example}
sock.send(b"who is there?")
try:
    print(sock.recv().decode())
except zmq.Again:
    print("no reader")
"""

TARGET = """
import zmq
context = zmq.Context()
sock = context.socket(zmq.REP)
sock.bind(sys.argv[1])
print("bound", flush=True)
while True:
    sock.send(sock.recv() + b" 10.0.1.2")
"""


@pytest.fixture(scope="module")
def hosts(spawner_thread):
    """Three networks with cables between them: the client's, the server's and the target's."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("cables between network namespaces need root, and ip (Debian: iproute2)")
    with Namespace() as client, Namespace() as server, Namespace() as target:
        _cable(client, "192.0.2.1/24", server, "192.0.2.2/24")
        _cable(server, "10.0.1.1/24", target, "10.0.1.2/24")
        yield client, server, target


def _cable(one, address, other, its_address):
    names = f"to{other.pid}", f"to{one.pid}"
    _run(one, "ip", "link", "add", names[0], "type", "veth", "peer", "name", names[1], "netns", str(other.pid))
    for host, name, own in ((one, names[0], address), (other, names[1], its_address)):
        _run(host, "ip", "addr", "add", own, "dev", name)
        _run(host, "ip", "link", "set", name, "up")


def _run(host, *argv):
    with host.run(argv, stdin=DEVNULL, stdout=PIPE) as process:
        said = process.stdout.read()
        assert process.wait(WAIT) == 0, argv
    return said.decode().strip()


@pytest.fixture
def servers(hosts, tmp_path):
    """An SSH server on the server and on the target, each at port 22."""
    made = []
    for host in hosts[1:]:
        folder = tmp_path / f"sshd-{host.pid}"
        folder.mkdir()
        made.append(Sshd(folder, config=["ListenAddress 0.0.0.0:22"], namespace=host))
    try:
        yield [server.start() for server in made]
    finally:
        for server in made:
            server.stop()


@pytest.fixture
def user(servers, tmp_path, monkeypatch):
    """One for all hosts: the keys of both servers are known, and the user's key is in the configuration."""
    made = User(tmp_path / "home", monkeypatch)
    server, target = servers
    made.known_hosts.write_text(f"192.0.2.2 {server.host_key_line}\n10.0.1.2 {target.host_key_line}\n")
    made.configure("Host server", "  HostName 192.0.2.2", f"  IdentityFile {server.keyfile}")
    made.configure("Host 10.0.1.2", f"  IdentityFile {target.keyfile}")
    return made


@pytest.fixture
def listening(hosts):
    """Has the target listen."""
    started = []

    def listen(address):
        started.append(hosts[2].run([*program(TARGET), address], stdin=DEVNULL, stdout=PIPE))
        assert started[-1].stdout.readline() == b"bound\n"

    yield listen
    for process in started:
        with process:
            process.kill()


def says(host, example, time=5000):
    return _run(host, *program(CLIENT.format(example=example, time=time)))


def test_the_examples_are_the_guides():
    for shown, call in {
        THROUGH_A_SERVER: 'ssh.tunnel_connection(sock, "tcp://10.0.1.2:5555", "server")',
        ONLY_ON_LOCALHOST: 'ssh.tunnel_connection(sock, "tcp://127.0.0.1:5555", "10.0.1.2")',
    }.items():
        assert (
            shown.replace("from relay.compat import zmqssh as ssh", "from zmq import ssh")
            == f"from zmq import ssh\n{call}"
        )


def test_on_the_same_lan(hosts, listening):
    listening("tcp://10.0.1.2:5555")
    assert says(hosts[1], SAME_LAN) == "who is there? 10.0.1.2"


def test_through_a_server(hosts, user, listening):
    client, _, _ = hosts
    listening("tcp://10.0.1.2:5555")
    assert says(client, SAME_LAN, 500) == "no reader"  # it cannot be reached from here
    assert says(client, THROUGH_A_SERVER) == "who is there? 10.0.1.2"


def test_only_on_localhost(hosts, user, listening):
    _, server, _ = hosts
    listening("tcp://127.0.0.1:5555")
    assert says(server, SAME_LAN, 500) == "no reader"  # it does not listen there
    assert says(server, ONLY_ON_LOCALHOST) == "who is there? 10.0.1.2"


def test_the_server_may_be_its_own_bastion(hosts, user, listening):
    """The last example from another network: the way to the host leads over the server."""
    client, _, _ = hosts
    listening("tcp://127.0.0.1:5555")
    over = ONLY_ON_LOCALHOST.replace(")", ', via=["ssh://server"])')
    assert says(client, over) == "who is there? 10.0.1.2"
