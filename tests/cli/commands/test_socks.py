"""``relay socks``: what it prints, whom it lets in, and what it refuses."""

import os
import re
import shutil
import socket
import subprocess

import pytest
from command_rig import commands
from helpers import BLOCK, WAIT, page, receive_all, refusing, send_and_end

from relay.addresses.values import TCPAddress

HELLO, NO_LOGIN, GRANTED = b"\5\1\0", b"\5\0", b"\5\0\0\1" + bytes(6)


@pytest.fixture
def start():
    with commands() as make:
        yield lambda *arguments, **options: make(*arguments, command="socks", **options)


def request(host, port):
    return HELLO + bytes([5, 1, 0, 3, len(host)]) + host.encode() + port.to_bytes(2, "big")


def curl(*arguments):
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    command = ["curl", "-sS", "--noproxy", "", *arguments]
    return subprocess.run(command, capture_output=True, timeout=WAIT, check=False)


def test_it_says_where_it_listens_and_leads_anywhere(start, echo_server):
    command = start(":0", "-v")
    address = command.address()
    assert address[0] == "127.0.0.1"
    with socket.create_connection(address, WAIT) as client:
        send_and_end(client, request("localhost", echo_server.address[1]) + b"hello")
        assert receive_all(client) == NO_LOGIN + GRANTED + b"hello"
    assert f"→ localhost:{echo_server.address[1]}: done" in command.hear("done")
    status, said = command.end()
    assert status == 0
    assert "1 connection" in said


def test_each_failure_of_a_hop_is_logged_once(start):
    with refusing() as place, refusing() as other:
        hops = [f"ssh://me@{host}:{port}?config=/dev/null" for host, port in (place, other)]
        command = start(":0", "--rule", f"a={hops[0]}", "--rule", f"b={hops[1]}")
        for _, port in (place, other):
            command.hear(f":{port}: connection refused")
        _, said = command.end()
    lines = [line for line in said.splitlines() if "connection refused" in line]
    assert [line for line in lines if "; trying again in " not in line] == []


@pytest.mark.parametrize(
    ("words", "warning"),
    [
        ("0.0.0.0:0", "has no password: any host that can connect may use it; set --user and --password-file"),
        ("sni://0.0.0.0:0 --rule *=direct", "any host that can connect may reach any server, by the rule '*'"),
    ],
)
def test_a_proxy_that_all_hosts_can_use_has_a_warning(start, words, warning):
    command = start(*words.split())
    assert " WARNING " in command.hear(warning)
    assert command.end()[0] == 0


def test_on_the_loopback_it_has_none(start):
    command = start("sni://127.0.0.1:0", "--rule", "*=direct")
    command.address()
    assert "WARNING" not in command.end()[1]


def test_over_a_unix_socket(start, echo_server, tmp_path):
    command = start(f"unix://{tmp_path}/proxy")
    assert command.process.stdout.readline() == f"listening on unix://{tmp_path}/proxy → anywhere\n"
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(WAIT)
        client.connect(str(tmp_path / "proxy"))
        send_and_end(client, request("localhost", echo_server.address[1]) + b"hello")
        assert receive_all(client) == NO_LOGIN + GRANTED + b"hello"
    assert command.end()[0] == 0
    assert not (tmp_path / "proxy").exists()


@pytest.mark.parametrize("scheme", ["http", "HTTP"])
def test_as_an_http_proxy(start, serve, scheme):
    command = start(f"{scheme}://127.0.0.1:0")
    where = "http://{}:{}".format(*command.address())
    done = curl("--proxytunnel", "--proxy", where, f"http://localhost:{serve(page).address[1]}/")
    assert done.stdout == BLOCK, done.stderr


def test_socks5_may_be_written_out(start, serve):
    command = start("socks5://127.0.0.1:0")
    where = "socks5h://{}:{}".format(*command.address())
    assert curl("--proxy", where, f"http://localhost:{serve(page).address[1]}/").stdout == BLOCK


def test_over_a_hop_and_by_rules(start, serve, ssh_server):
    port = serve(page).address[1]
    command = start(":0", "--via", ssh_server.url, "--rule", "127.0.0.1=direct", "--rule", "127.0.0.0/8=refuse")
    line = command.process.stdout.readline()
    assert re.fullmatch(r"listening on 127\.0\.0\.1:\d+ → anywhere via ssh://\S+ by 2 rules\n", line)
    where = f"socks5h://{re.search(r'127.0.0.1:[0-9]+', line)[0]}"
    assert curl("--proxy", where, f"http://127.0.0.1:{port}/").stdout == BLOCK
    assert ssh_server.opened == 0
    assert curl("--proxy", where, f"http://localhost:{port}/").stdout == BLOCK
    assert ssh_server.opened == 1
    refused = curl("--proxy", where, f"http://127.0.0.2:{port}/")
    assert refused.returncode == 97 and b"(2)" in refused.stderr
    assert "the rules refuse it" in command.hear("127.0.0.2")


def test_a_login_that_is_refused_ends_it(start, make_ssh_server, tmp_path):
    server, other = make_ssh_server(), make_ssh_server()
    wrong = re.sub(r"keyfile=[^&]*", re.search(r"keyfile=[^&]*", other.url)[0], server.url)
    command = start(":0", "--rule", f"*.corp.example={wrong}")
    status, said = command.wait()
    assert status == 1
    assert len(said.splitlines()) == 1, said
    assert said.startswith("relay: ssh://")


@pytest.mark.parametrize("order", [1, -1])
def test_a_host_key_that_is_not_known_ends_it_whatever_the_order_of_the_rules(start, ssh_server, tmp_path, order):
    (tmp_path / "empty").touch()
    with refusing() as (host, port):
        unknown = f"ssh://me@{TCPAddress(*ssh_server.address)}?config=/dev/null&known_hosts={tmp_path}/empty"
        rules = [f"--rule=a={unknown}", f"--rule=b=ssh://me@{host}:{port}?config=/dev/null"]
        status, said = start(":0", *rules[::order]).wait()
    lines = [line for line in said.splitlines() if "connection refused" not in line]
    assert status == 1
    assert len(lines) == 1 and "not known" in lines[0], said


def test_a_password(start, serve, tmp_path):
    file = tmp_path / "password"
    file.write_text("secret\n")
    file.chmod(0o600)
    port = serve(page).address[1]
    for listen, scheme in ((":0", "socks5h"), ("http://127.0.0.1:0", "http")):
        command = start(listen, "--user", "me", "--password-file", str(file))
        host, proxy_port = command.address()
        common = ["--proxytunnel", f"http://localhost:{port}/", "--proxy"]
        assert curl(*common, f"{scheme}://me:secret@{host}:{proxy_port}").stdout == BLOCK
        assert curl(*common, f"{scheme}://me:wrong@{host}:{proxy_port}").returncode in (56, 97)
    environment = {**os.environ, "PROXY_PASSWORD": "secret"}
    for words in ([":0", "--user", "me", "--password-env", "PROXY_PASSWORD"], [f"socks5://me@:0?password_file={file}"]):
        where = "socks5h://me:secret@{}:{}".format(*start(*words, env=environment).address())
        assert curl("--proxy", where, f"http://localhost:{port}/").stdout == BLOCK


@pytest.mark.parametrize(("listen", "warned"), [("0.0.0.0:0", True), ("[::1]:0", False), ("127.0.0.2:0", False)])
def test_a_proxy_for_everybody_is_a_warning(start, listen, warned):
    command = start(listen)
    command.process.stdout.readline()
    status, said = command.end()
    assert status == 0
    assert ("WARNING proxy on 0.0.0.0 port" in said) == warned


@pytest.mark.parametrize(("listen", "warned"), [("0.0.0.0:0", 1), ("127.0.0.1:0", 0)])
def test_a_password_that_crosses_the_network_in_the_clear_is_a_warning(start, listen, warned):
    command = start(listen, "--user", "me", "--password-env", "P", env={**os.environ, "P": "secret"})
    command.process.stdout.readline()
    said = command.end()[1]
    assert said.count("WARNING") == said.count("users and passwords cross the network in the clear") == warned
