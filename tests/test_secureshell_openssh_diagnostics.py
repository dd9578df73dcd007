"""What ssh says, as typed errors of one line."""

from __future__ import annotations

import pytest

from relay.address import SSHServer
from relay.errors import AuthenticationError, CarrierError, ConnectError, HostKeyError, RelayError
from relay.secureshell.connection import Settings
from relay.secureshell.openssh.diagnostics import decoded, open_error, said, timeout_error, why

HERE = Settings(SSHServer("bastion", "me"), "bastion.example", 22, "me", known_hosts=("/home/me/.ssh/known_hosts",))
KEY = "debug1: Server host key: ssh-ed25519 SHA256:abc"
REMOTE = "debug1: Remote protocol version 2.0, remote software version OpenSSH_9.2p1"

ERRORS = {
    "unknown key": (
        [
            KEY,
            "No ED25519 host key is known for bastion.example and you have requested strict checking.",
            "Host key verification failed.",
        ],
        HostKeyError,
        ["not known", "SHA256:abc", "/home/me/.ssh/known_hosts", "accept_new"],
    ),
    "changed key": (
        [
            KEY,
            "@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @",
            "Add correct host key in /home/me/.ssh/known_hosts to get rid of this message.",
            "Offending RSA key in /home/me/.ssh/known_hosts:7",
            "Host key verification failed.",
        ],
        HostKeyError,
        ["has changed", "/home/me/.ssh/known_hosts line 7", "ssh-keygen -R 'bastion.example'"],
    ),
    "revoked key": (
        [KEY, "@       WARNING: REVOKED HOST KEY DETECTED!               @", "Host key verification failed."],
        HostKeyError,
        ["revoked"],
    ),
    "no credentials": (
        [
            KEY,
            "debug1: Next authentication method: publickey",
            "debug1: Offering public key: /home/me/.ssh/id_ed25519 ED25519 SHA256:q agent",
            "me@bastion.example: Permission denied (publickey,password).",
        ],
        AuthenticationError,
        ["takes publickey,password", "/home/me/.ssh/id_ed25519 ED25519", "as me"],
    ),
    "a key that cannot be read": (
        ['Load key "/k": error in libcrypto', "me@bastion.example: Permission denied (publickey)."],
        AuthenticationError,
        ["tried: nothing", "error in libcrypto"],
    ),
    "too many": (
        ["Received disconnect from ::1 port 22:2: Too many authentication failures"],
        AuthenticationError,
        ["not let in"],
    ),
    "refused": (["ssh: connect to host bastion.example port 22: Connection refused"], ConnectError, ["refused"]),
    "no name": (
        ["ssh: Could not resolve hostname bastion.example: Name or service not known"],
        ConnectError,
        ["Could not resolve"],
    ),
    "through a jump": (
        ["channel 0: open failed: connect failed: Connection refused", "stdio forwarding failed"],
        ConnectError,
        ["Connection refused"],
    ),
    "no SSH": (
        ["debug1: kex_exchange_identification: banner line 0: HTTP", "kex_exchange_identification: read: reset"],
        CarrierError,
        ["no SSH server"],
    ),
    "lost": ([REMOTE, "Connection closed by 10.0.0.1 port 22"], CarrierError, ["lost before", "closed by 10.0.0.1"]),
    "no word": ([], CarrierError, ["without a word"]),
    "an old ssh": (["command-line: line 0: Bad configuration option: logverbose"], RelayError, ["8.7", "logverbose"]),
    "a broken file": (["/home/me/.ssh/config: line 3: Bad configuration option: x"], RelayError, ["line 3"]),
}


@pytest.mark.parametrize(("lines", "kind", "words"), ERRORS.values(), ids=ERRORS)
def test_errors_have_their_type_and_say_why(lines: list[str], kind: type, words: list[str]) -> None:
    error = why(HERE, lines)
    assert type(error) is kind
    text = str(error)
    assert text.startswith("ssh://me@bastion: ")
    assert "\n" not in text
    assert len(text) < 700
    assert [word for word in words if word not in text] == []


def test_a_pinned_key_is_shown_beside_the_other() -> None:
    pinned = Settings(SSHServer("bastion", hostkey="SHA256:" + "x" * 42 + "A"), "bastion", 22, "me")
    text = str(why(pinned, [KEY, "Host key verification failed."]))
    assert "SHA256:abc" in text
    assert "SHA256:" + "x" * 42 + "A" in text


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", "no answer in time"),
        ("debug1: Local version string SSH-2.0-OpenSSH", "is it an SSH server"),
        (REMOTE, "key exchange"),
        (KEY, "login"),
    ],
)
def test_a_timeout_says_how_far_it_got(line: str, words: str) -> None:
    error = timeout_error(HERE, [line])
    assert error.reason == "connect_timeout"
    assert words in str(error)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("connect failed: Connection refused", "refused"),
        ("connect failed: Connection timed out", "connect_timeout"),
        ("connect failed: No route to host", "unreachable"),
        ("connect failed: Name or service not known", "unreachable"),
        ("connect failed: open failed", "refused"),
        ("connect failed", "refused"),
        ("administratively prohibited: open failed", "denied"),
        ("unknown channel type: unsupported", "denied"),
        ("resource shortage: full", "unreachable"),
        ("", "refused"),
    ],
)
def test_a_stream_that_was_not_opened_has_a_reason(text: str, reason: str) -> None:
    error = open_error("db:5432", text)
    assert error.reason == reason
    assert str(error).startswith("db:5432: ")


def test_the_last_words_are_no_chatter() -> None:
    lines = ["Timeout, server 127.0.0.1 not responding.", "debug1: x", "Transferred: sent 1", "Bytes per second: 3"]
    assert said(lines) == "Timeout, server 127.0.0.1 not responding"
    assert said(["debug1: x"]) == ""
    assert len(said(["x" * 5000])) == 300


def test_what_a_server_says_cannot_reach_a_terminal_raw() -> None:
    assert decoded(b"\x1b[2Jhi\xff\r") == "\ufffd[2Jhi\ufffd"
