"""Programs that were written for ``zmq.ssh`` run with one import changed; they stand here as they would be found."""

import json

import pytest
import zmq
from helpers import WAIT, Thread
from zmq_world import PATIENCE, User, bound, named, program, sockets

from relay.process import DEVNULL, PIPE, start

# What a client of a remote kernel does: four ports at once, and the result is dropped.
KERNEL = """
import json, sys
from getpass import getpass

import zmq


def tunnel_to_kernel(connection_info, sshserver, sshkey=None):
    from zmq.ssh import tunnel

    cf = connection_info
    lports = tunnel.select_random_ports(4)
    rports = cf["shell_port"], cf["iopub_port"], cf["stdin_port"], cf["hb_port"]
    remote_ip = cf["ip"]
    if tunnel.try_passwordless_ssh(sshserver, sshkey):
        password = False
    else:
        password = getpass("SSH Password for %s: " % sshserver)
    for lp, rp in zip(lports, rports):
        tunnel.ssh_tunnel(lp, rp, sshserver, remote_ip, sshkey, password)
    return tuple(lports)


connection_info = json.loads(sys.argv[1])
ports = tunnel_to_kernel(connection_info, sys.argv[2], sys.argv[3])
context = zmq.Context()
for port in ports:
    sock = context.socket(zmq.REQ)
    sock.connect("tcp://127.0.0.1:%i" % port)
    sock.send(b"hi")
    print(sock.recv().decode())
    sock.close()
context.term()
"""

# A worker that takes its work from behind a bastion.
WORKER = """
import sys
import zmq
from zmq import ssh

(target,) = __import__("json").loads(sys.argv[1])["urls"]
ctx = zmq.Context.instance()
s = ctx.socket(zmq.REQ)
tunnel = ssh.tunnel_connection(s, target, sys.argv[2], keyfile=sys.argv[3], timeout=20)
for i in range(4):
    s.send_string("hi")
    print(s.recv_string())
s.close()
"""

# One that keeps the address, for it has several sockets to connect, and ends the tunnel itself.
SEVERAL = """
import sys
import zmq
from zmq.ssh import tunnel

(target,) = __import__("json").loads(sys.argv[1])["urls"]
url, process = tunnel.open_tunnel(target, sys.argv[2], sys.argv[3], None, True, 20)
assert url.startswith("tcp://127.0.0.1:")
ctx = zmq.Context()
socks = [ctx.socket(zmq.REQ) for _ in range(4)]
for sock in socks:
    sock.connect(url)
    sock.send(b"hi")
    print(sock.recv().decode())
for sock in socks:
    sock.close()
ctx.term()
process.terminate()
process.join()
"""

# One that names what it takes, and says first whether it can be done at all.
NAMED = """
import sys
import zmq
from zmq.ssh.tunnel import SSHException, paramiko_tunnel, select_random_ports, try_passwordless_ssh

urls = __import__("json").loads(sys.argv[1])["urls"]
try:
    assert try_passwordless_ssh(sys.argv[2], sys.argv[3], paramiko=True)
except SSHException as e:
    sys.exit(str(e))
port, = select_random_ports(1)
p = paramiko_tunnel(port, int(urls[0].split(":")[-1]), sys.argv[2], keyfile=sys.argv[3], timeout=20)
ctx = zmq.Context()
for i in range(4):
    with ctx.socket(zmq.REQ) as sock:
        sock.connect("tcp://127.0.0.1:%i" % port)
        sock.send(b"hi")
        print(sock.recv().decode())
"""

PROGRAMS = {"kernel": KERNEL, "worker": WORKER, "several": SEVERAL, "named": NAMED}
CHANGES = {
    "from zmq.ssh import tunnel\n": "from relay.compat import zmqssh as tunnel\n",
    "from zmq import ssh\n": "from relay.compat import zmqssh as ssh\n",
    "from zmq.ssh.tunnel import ": "from relay.compat.zmqssh import ",
}


def changed(code):
    """The program with its one import changed."""
    (old,) = [old for old in CHANGES if old in code]
    assert code.count(old) == 1
    return code.replace(old, CHANGES[old])


def answer(server):
    for number in range(4):
        assert server.recv() == b"hi"
        server.send(b"answer %d" % number)


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("library", ["relay", "original"])
def test_it_runs(sshd, tmp_path, monkeypatch, name, library):
    user = User(tmp_path / "home", monkeypatch)
    user.knows(sshd.server)
    code = PROGRAMS[name] if library == "original" else changed(PROGRAMS[name])
    with sockets() as make:
        server = make(zmq.REP)
        url = bound(server)
        port = int(url.rpartition(":")[2])
        ports = dict.fromkeys(["shell_port", "iopub_port", "stdin_port", "hb_port"], port)
        arguments = [json.dumps({"ip": "127.0.0.1", "urls": [url], **ports}), named(sshd.server), str(sshd.keyfile)]
        said, status = run(PATIENCE + code if library == "original" else code, arguments, server)
    sshd.kill_sessions()  # the original leaves its ssh behind
    assert (said, status) == ([f"answer {number}" for number in range(4)], 0)


def run(code, arguments, server):
    with start([*program(code), *arguments], stdin=DEVNULL, stdout=PIPE, stderr=None) as process:
        answering = Thread(answer, server)
        try:
            said = process.communicate(timeout=WAIT)[0].decode().splitlines()
        finally:
            process.kill()  # a program whose request got no answer waits for ever; nothing if it has ended
    answering.result()
    return [line for line in said if line.startswith("answer")], process.returncode
