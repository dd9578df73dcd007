"""The files and privileges of the tunnels of a file."""

import pytest

from relay import config
from relay.cli.service.needs import Needs, needs_of


@pytest.fixture
def needs(tmp_path):
    """Returns the needs of a text, with paths relative to its folder."""

    def read(text, *, programs=()):
        path = tmp_path / "relay.toml"
        path.write_text(text)
        path.chmod(0o600)
        found = config.read(str(path))
        assert found.problems.in_order() == []
        return needs_of(found, "/home/me", lambda server: server.host in programs)

    return read


def tunnel(listen="8080", target="h:1", *more, name="t"):
    target_line = [f'target = "{target}"'] if target else []
    return "\n".join([f"[tunnels.{name}]", f'listen = "{listen}"', *target_line, *more, ""])


def test_a_tunnel_over_tcp_needs_nothing(needs):
    assert needs(tunnel()) == Needs((), (), (), (), has_low_port=False)


@pytest.mark.parametrize(
    ("text", "reads"),
    [
        (tunnel("tls://:1?cert=c.pem&key=~/k"), ["c.pem", "/home/me/k"]),
        (tunnel(target="tls://h:1?ca=/etc/ca"), ["/etc/ca"]),
        (
            tunnel("8080", "h:1", 'via = ["ssh://h?keyfile=~/k&known_hosts=n&password_file=p"]'),
            ["/home/me/k", "n", "p"],
        ),
        ('[hops]\nb = "ssh://h?keyfile=/k"\n' + tunnel(), ["/k"]),
        (
            tunnel("socks5://:1", "", 'rule = ["*=ssh://h?keyfile=/k"]', 'user = "u"', 'password_file = "p"'),
            ["p", "/k"],
        ),
        (tunnel("ssh://h?listen=:1&keyfile=/k"), ["/k"]),
        ('status_token_file = "t"\n' + tunnel(), ["t"]),
        ('[defaults]\nsam = "tls://h:1?ca=/ca"\n' + tunnel(target="i2p://a.i2p"), ["/ca"]),
    ],
)
def test_each_file_is_found(needs, text, reads, tmp_path):
    assert set(needs(text).reads) == {each if each.startswith("/") else str(tmp_path / each) for each in reads}


@pytest.mark.parametrize(
    ("text", "writes"),
    [
        (tunnel("unix:///run/a/s"), ["/run/a"]),
        ('log_file = "/var/log/relay/x"\n' + tunnel(), ["/var/log/relay"]),
        ('control = "/run/c/s"\nstatus = "unix:///run/s/s"\n' + tunnel(), ["/run/c", "/run/s"]),
        ('control = "none"\nstate = "none"\nstatus = "none"\n' + tunnel(), []),
        (tunnel("i2p:", "h:1", 'keys = "/k/x"'), ["/k"]),
        (tunnel("i2p:?keys=/k/x"), ["/k"]),
        (tunnel("i2p:"), ["/home/me/.local/share/relay"]),
        (tunnel("i2p:", "h:1", "transient = true"), []),
        (tunnel("8080", "h:1", 'via = ["ssh://h?accept_new=yes"]'), ["/home/me/.ssh"]),
        (tunnel("8080", "h:1", 'via = ["ssh://h?accept_new=yes&known_hosts=/h/n"]'), ["/h"]),
    ],
)
def test_each_folder_with_files_that_relay_makes_is_found(needs, text, writes):
    assert sorted(needs(text).writes) == sorted(writes)


def test_the_groups_of_sockets_and_those_for_others_are_found(needs):
    text = "\n".join(
        [
            'status = "unix:///s/page?group=prometheus"',
            tunnel("unix:///s/a", name="a"),
            tunnel("unix:///s/b?mode=0666", name="b"),
            tunnel("unix:///s/c?mode=0660&group=7", name="c"),
        ]
    )
    found = needs(text)
    assert sorted(found.groups) == ["7", "prometheus"]
    assert sorted(each.rpartition("/")[2] for each in found.shared) == ["b", "c", "page"]


def test_sockets_programs_and_low_ports_are_found(needs):
    assert needs(tunnel(target="unix:///run/db")).sockets == ("/run/db",)
    assert needs(tunnel(target="exec:cat")).programs == ("exec:",)
    assert needs(tunnel("8080", "h:1", 'via = ["exec:nc %h %p"]')).programs == ("exec:",)
    ssh = tunnel("8080", "h:1", 'via = ["ssh://a"]') + tunnel("ssh://b?listen=:1", name="u")
    assert needs(ssh).programs == ()
    assert needs(ssh, programs=("b",)).programs == ("the OpenSSH client",)
    assert [needs(tunnel(listen)).has_low_port for listen in ("80", "1023", "1024", "0")] == [True, True, False, False]
    assert not needs(tunnel("ssh://h?listen=:80")).has_low_port
    assert needs('status = "127.0.0.1:80"\n' + tunnel()).has_low_port
