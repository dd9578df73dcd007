"""Real programs that take ``relay pipe`` as their way to a server: ssh, scp, rsync, git, and programs made for nc."""

import hashlib
import os
import shlex
import shutil
import signal
import subprocess
import threading

import psutil
import pytest
from command_rig import RELAY
from helpers import BLOCK, WAIT, receive_all, wait_until
from sshd import server_url

SIZE = 20 << 20
WAYS = ["directly", "paramiko", "openssh"]


def program(name):
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"there is no {name}")
    return path


class Client:
    """A user's ``ssh`` whose way to a server is ``relay pipe``.

    ``argv`` is the command that rsync, scp and git use; the host is called ``far``.
    """

    def __init__(self, folder, server, hops=()):
        self.folder = folder
        self.relay = [RELAY, "pipe", "%h:%p", *(word for hop in hops for word in ("--via", hop.replace("%", "%%")))]
        settings = {
            "HostName": server.host,
            "Port": server.port,
            "User": server.user,
            "IdentityFile": server.keyfile,
            "IdentitiesOnly": "yes",
            "UserKnownHostsFile": server.known_hosts,
            "GlobalKnownHostsFile": "none",
            "BatchMode": "yes",
            "LogLevel": "ERROR",
            "ProxyCommand": shlex.join(self.relay),
        }
        self.config = folder / "config"
        self.config.write_text("Host far\n" + "".join(f"  {name} {value}\n" for name, value in settings.items()))
        self.argv = [program("ssh"), "-F", str(self.config)]

    def ssh(self, command, **options):
        """Return the output of a command that runs there."""
        done = subprocess.run([*self.argv, "far", command], capture_output=True, timeout=60, check=False, **options)
        assert (done.returncode, done.stderr) == (0, b""), done
        return done.stdout

    def run(self, *argv, **options):
        """Run a program here that ends well and complains of nothing."""
        done = subprocess.run(argv, capture_output=True, timeout=60, check=False, **options)
        assert (done.returncode, done.stderr) == (0, b""), done
        return done.stdout


@pytest.fixture(params=WAYS)
def client(request, tmp_path, make_sshd):
    """With no hop, and over another server with each backend."""
    hops = []
    if request.param != "directly":
        bastion = make_sshd()
        hops.append(server_url(bastion.server, backend=request.param))
    return Client(tmp_path, make_sshd("Subsystem sftp internal-sftp").server, hops)


@pytest.fixture
def direct(tmp_path, sshd):
    return Client(tmp_path, sshd.server)


@pytest.fixture
def large(tmp_path):
    path = tmp_path / "large"
    path.write_bytes(BLOCK * (SIZE // len(BLOCK)))
    return path


def hash_of(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def relays():
    """The pipes that run now, below this process."""
    found = []
    for one in psutil.Process().children(recursive=True):
        try:
            if {RELAY, "pipe"} <= {*one.cmdline()} and one.status() != psutil.STATUS_ZOMBIE:
                found.append(one)
        except psutil.NoSuchProcess:
            continue
    return found


def test_ssh_runs_a_command(client):
    assert client.ssh("cat; printf done", input=b"hello ") == b"hello done"
    assert relays() == []


def test_ssh_moves_a_lot_both_ways(client):
    data = BLOCK * 8
    assert client.ssh("cat", input=data) == data


# The programs move their bytes by the same `ssh`, each over another way.


@pytest.mark.parametrize("client", ["paramiko"], indirect=True)
def test_scp_both_ways(client, large, tmp_path):
    scp = [program("scp"), "-F", str(client.config), "-q"]
    client.run(*scp, str(large), f"far:{tmp_path}/there")
    assert hash_of(tmp_path / "there") == hash_of(large)
    client.run(*scp, f"far:{tmp_path}/there", str(tmp_path / "back"))
    assert hash_of(tmp_path / "back") == hash_of(large)


@pytest.mark.parametrize("client", ["openssh"], indirect=True)
def test_rsync_both_ways(client, large, tmp_path):
    rsync = [program("rsync"), "-q", "--whole-file", "-e", shlex.join(client.argv)]
    client.run(*rsync, str(large), f"far:{tmp_path}/there")
    assert hash_of(tmp_path / "there") == hash_of(large)
    client.run(*rsync, f"far:{tmp_path}/there", str(tmp_path / "back"))
    assert hash_of(tmp_path / "back") == hash_of(large)


@pytest.mark.parametrize("client", ["directly"], indirect=True)
def test_git_clones_and_pushes(client, tmp_path):
    git = program("git")
    who = {"GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b", "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b"}
    env = {**os.environ, **who, "GIT_SSH_COMMAND": shlex.join(client.argv), "GIT_CONFIG_GLOBAL": os.devnull}
    origin, clone = tmp_path / "origin.git", tmp_path / "clone"
    client.run(git, "init", "-q", "--bare", "-b", "main", str(origin), env=env)
    subprocess.run(
        [git, "clone", "-q", f"far:{origin}", str(clone)], check=True, timeout=60, env=env, capture_output=True
    )
    (clone / "file").write_bytes(BLOCK)
    client.run(git, "-C", str(clone), "add", "file", env=env)
    client.run(git, "-C", str(clone), "commit", "-q", "-m", "a file", env=env)
    client.run(git, "-C", str(clone), "push", "-q", "origin", "HEAD:main", env=env)
    client.run(git, "clone", "-q", f"far:{origin}", str(tmp_path / "again"), env=env)
    assert hash_of(tmp_path / "again" / "file") == hash_of(clone / "file")
    assert relays() == []


def test_a_request_by_printf_gets_its_whole_answer(serve):
    """A script that was written for nc."""

    def handle(end):
        assert receive_all(end) == b"GET / HTTP/1.0\r\n\r\n"
        end.sendall(b"HTTP/1.0 200 OK\r\n\r\n" + BLOCK)

    server = serve(handle)
    script = r"printf 'GET / HTTP/1.0\r\n\r\n' | relay pipe 127.0.0.1:PORT | tail -c 1048576 | sha256sum"
    script = script.replace("PORT", str(server.address[1])).replace("relay", shlex.quote(RELAY))
    done = subprocess.run(["/bin/sh", "-c", script], capture_output=True, timeout=WAIT, check=True)
    assert done.stdout.split()[0].decode() == hashlib.sha256(BLOCK).hexdigest()
    assert done.stderr == b""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_when_ssh_is_ended(client, number):
    with subprocess.Popen(
        [*client.argv, "far", "echo ready; cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as ssh:
        assert ssh.stdout.readline() == b"ready\n"
        (pipe,) = relays()
        family = [pipe, *pipe.children(recursive=True)]
        ssh.send_signal(number)
        ssh.stdin.close()
    _, alive = psutil.wait_procs(family, timeout=WAIT)
    assert alive == []


def test_it_ends_with_the_server_and_ssh_tells(tmp_path, make_sshd):
    server = make_sshd()
    client = Client(tmp_path, server.server)
    with subprocess.Popen(
        [*client.argv, "far", "echo ready; cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as ssh:
        assert ssh.stdout.readline() == b"ready\n"
        (pipe,) = relays()
        server.kill_sessions()
        assert ssh.wait(WAIT) == 255
    wait_until(lambda: not pipe.is_running())


def test_a_server_out_of_reach_is_told_by_us_on_the_users_terminal(tmp_path, make_sshd):
    server = make_sshd()
    client = Client(tmp_path, server.server)
    server.kill()
    done = subprocess.run([*client.argv, "far", "true"], capture_output=True, timeout=WAIT, check=False)
    assert done.returncode == 255
    assert (
        f"relay: 127.0.0.1:{server.port}: connection refused; check that the service is running\n"
        in done.stderr.decode()
    )


def test_ten_at_once(direct):
    results = []
    threads = [
        threading.Thread(target=lambda n=n: results.append(direct.ssh("cat", input=b"%d" % n))) for n in range(10)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(map(int, results)) == list(range(10))
