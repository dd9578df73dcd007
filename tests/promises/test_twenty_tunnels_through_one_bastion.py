"""The commands of the page about twenty tunnels, one after the other, with a real systemd and a real bastion."""

import re
import shlex
import socket
import sys

import pytest
from documents import PAGES
from group_rig import letter
from helpers import WAIT, receive_exactly, reserved_port
from real_systemd import FOLDER, Systemd, Unavailable

PAGE = PAGES["twenty-tunnels"]
(TEXT,) = re.findall(r"^```toml\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
COMMANDS = re.findall(r"^\$ (?:sudo )?(.*?)(?: +#.*)?$", PAGE, re.MULTILINE)
OWNER = "daemon"  # a user that is there, instead of the page's
ELSEWHERE = ("useradd", "userdel", "ssh-keyscan", "/opt/relay")  # of the machine and its network


@pytest.fixture(scope="module")
def systemd():
    try:
        made = Systemd()
    except Unavailable as error:
        pytest.skip(str(error))
    with made:
        yield made


def answer(port):
    """The first byte for a client; none if it is refused."""
    try:
        with socket.create_connection(("127.0.0.1", port), WAIT) as client:
            return receive_exactly(client, 1)
    except ConnectionRefusedError:
        return b""


def test_from_the_file_to_the_removal(systemd, sshd, serve):
    one, other = ("{}:{}".format(*serve(letter(each)).address) for each in (b"a", b"b"))
    names = re.findall(r"^(\w+) = \{", TEXT, re.MULTILINE)
    assert len(names) == 20
    home = f"{FOLDER}/etc"  # which the page makes

    def here(text):
        text = text.replace("ssh://relay@bastion?", f"ssh://{sshd.user}@127.0.0.1:{sshd.port}?")
        return text.replace("/etc/relay", home).replace("relay: ", f"{OWNER}: ")

    with reserved_port() as port, reserved_port() as new_port:
        text = re.sub(r'target = "[^"]*"', f'target = "{one}"', here(TEXT))
        text = text.replace('listen = "5432"', f'listen = "{port}"')
        text = re.sub(r'listen = "(\d{4})"', 'listen = ":0"', text)
        file = systemd.path(f"{home}/relay.toml")
        shown = {}
        for command in COMMANDS:
            if command.startswith(ELSEWHERE):
                continue
            if command.startswith("relay check --diff"):  # the change of the page: one line more
                line = f'more = {{ listen = "{new_port}", target = "{other}", via = ["bastion"] }}\n'
                file.write_text(text + line)
            words = shlex.split(here(command))
            words[0] = f"{sys.prefix}/bin/relay" if words[0] == "relay" else words[0]
            shown[command] = systemd.run(*words)
            if command.startswith("ssh-keygen"):  # then the bastion gets the key; here relay gets one that it has
                systemd.path(f"{home}/bastion.key").write_bytes(sshd.keyfile.read_bytes())
                systemd.path(f"{home}/known_hosts").write_bytes(sshd.known_hosts.read_bytes())
                file.write_text(text)
            elif command.startswith("systemctl enable"):
                assert answer(port) == b"a" and answer(new_port) == b""
                before = systemd.show("relay", "MainPID")
            elif command.startswith("systemctl reload"):
                systemd.wait_for("relay", StatusText="21 of 21 tunnels listen", SubState="running")
                assert (answer(port), answer(new_port)) == (b"a", b"b")
                assert systemd.show("relay", "MainPID") == before
            elif command == "relay ctl upgrade":
                systemd.wait_for("relay", SubState="running")
                assert systemd.show("relay", "MainPID") != before
                assert (answer(port), answer(new_port)) == (b"a", b"b")
        assert all(f"{name} " in shown["relay ctl list"] for name in names)
        assert shown["relay ctl carriers"].count(" up ") == 2
        assert "more: new" in shown["relay check --diff /etc/relay/relay.toml"]
        assert answer(port) == b"" and systemd.show("relay", "LoadState") == "not-found"
        assert not systemd.path(home).exists()
