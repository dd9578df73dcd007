"""Messages of ssh as typed errors of one line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from relay.addresses.ssh import SSHServer
from relay.errors import AuthenticationError, CarrierError, ConnectError, HostKeyError, RelayError
from relay.transports.ssh.connection import IncompatibleError, Settings
from relay.transports.ssh.openssh.diagnostics import decoded, said, timeout_error, why

HERE = Settings(SSHServer("bastion", "me"), "bastion.example", 22, "me", known_hosts=("/home/me/.ssh/known_hosts",))
KEY = "debug1: Server host key: ssh-ed25519 SHA256:abc"
ID = "/home/me/.ssh/id ED25519 SHA256:q"
REMOTE = "debug1: Remote protocol version 2.0, remote software version OpenSSH_9.2p1"

# A name, the error and words in its text, then what ssh has said.
ERRORS = r"""
unknown key => HostKeyError: is not known | ED25519 SHA256:abc | /home/me/.ssh/known_hosts | accept_new
  => hostkey=SHA256:abc
    debug1: Server host key: ssh-ed25519 SHA256:abc
    No ED25519 host key is known for bastion.example and you have requested strict checking.
    Host key verification failed.
changed key => HostKeyError: has changed | /home/me/.ssh/known_hosts line 7 has another
  => ssh-keygen -f /home/me/.ssh/known_hosts -R
    debug1: Server host key: ssh-ed25519 SHA256:abc
    @    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @
    Add correct host key in /home/me/.ssh/known_hosts to get rid of this message.
    Offending RSA key in /home/me/.ssh/known_hosts:7
    Host key verification failed.
revoked key => HostKeyError: revoked
    debug1: Server host key: ssh-ed25519 SHA256:abc
    @       WARNING: REVOKED HOST KEY DETECTED!               @
    Host key verification failed.
no credentials => AuthenticationError: accepts publickey, password
  => rejected: /home/me/.ssh/id_ed25519 (ED25519 SHA256:q); add the | as me
    debug1: Server host key: ssh-ed25519 SHA256:abc
    debug1: Next authentication method: publickey
    debug1: Offering public key: /home/me/.ssh/id_ed25519 ED25519 SHA256:q agent
    me@bastion.example: Permission denied (publickey,password).
a key that cannot be read => AuthenticationError: no credential was available; /etc/passwd is not a private key
    debug1: Trying private key: /etc/passwd
    Load key "/etc/passwd": error in libcrypto
    me@bastion.example: Permission denied (publickey).
keys that are not there => AuthenticationError: no credential was available; set keyfile
    debug1: Trying private key: /nonexistent/id_rsa
    me@bastion.example: Permission denied (publickey).
a key of the wrong kind => AuthenticationError: Skipping ssh-dss key /k
    debug1: Skipping ssh-dss key /k - not wanted
    me@bastion.example: Permission denied (publickey).
a key that needs a passphrase => AuthenticationError: /home/me/.ssh/id is encrypted and there is no passphrase for it
  => set passphrase
    debug1: Server accepts key: /home/me/.ssh/id ED25519 SHA256:q explicit
    me@bastion.example: Permission denied (publickey).
a key that was used => AuthenticationError:
  => accepted, but not enough: publickey; the server accepts keyboard-interactive now | set password
    debug1: Server accepts key: /home/me/.ssh/id ED25519 SHA256:q explicit
    Authenticated using "publickey" with partial success.
    me@bastion.example: Permission denied (keyboard-interactive).
a public key alone => AuthenticationError: the key of /home/me/.ssh/id.pub is not in the agent
    debug1: Server accepts key: /home/me/.ssh/id.pub ED25519 SHA256:q explicit
    Load key "/home/me/.ssh/id.pub": bad permissions
    me@bastion.example: Permission denied (publickey).
a key that others can read => AuthenticationError: chmod 600
    debug1: Server accepts key: /home/me/.ssh/id ED25519 SHA256:q explicit
    Load key "/home/me/.ssh/id": bad permissions
    me@bastion.example: Permission denied (publickey).
an agent that does not sign => AuthenticationError: agent refused operation
    debug1: Server accepts key: /home/me/.ssh/id ED25519 SHA256:q agent
    sign_and_send_pubkey: signing failed for ED25519 from agent: agent refused operation
    me@bastion.example: Permission denied (publickey).
no password is tried where none was given => AuthenticationError:
  => accepts password; no credential was available; set password
    debug1: Next authentication method: password
    debug1: read_passphrase: requested to askpass
    me@bastion.example: Permission denied (password).
too many => AuthenticationError: was rejected | a 5 (RSA SHA256:5) and 3 more
  => ended the connection: Too many authentication | set keyfile
    debug1: Offering public key: a 0 RSA SHA256:0 agent
    debug1: Offering public key: a 1 RSA SHA256:1 agent
    debug1: Offering public key: a 2 RSA SHA256:2 agent
    debug1: Offering public key: a 3 RSA SHA256:3 agent
    debug1: Offering public key: a 4 RSA SHA256:4 agent
    debug1: Offering public key: a 5 RSA SHA256:5 agent
    debug1: Offering public key: a 6 RSA SHA256:6 agent
    debug1: Offering public key: a 7 RSA SHA256:7 agent
    debug1: Offering public key: a 8 RSA SHA256:8 agent
    Received disconnect from ::1 port 22:2: Too many authentication failures
refused => ConnectError: bastion.example:22: connection refused
    ssh: connect to host bastion.example port 22: Connection refused
no name => ConnectError: Could not resolve
    ssh: Could not resolve hostname bastion.example: Name or service not known
through a jump => ConnectError: bastion.example:22: connection refused
    channel 0: open failed: connect failed: Connection refused
    stdio forwarding failed
no SSH => CarrierError: no SSH server: it sent 'HTTP'; check the port
    debug1: kex_exchange_identification: banner line 0: HTTP
    kex_exchange_identification: read: reset
closed at once => CarrierError: the server has closed the connection (it has not sent an SSH version) | MaxStartups
    kex_exchange_identification: Connection closed by remote host
    Connection closed by ::1 port 22
a proxy command => ConnectError: ProxyCommand (nc) | nc: no proxy
    debug1: Executing proxy command: exec nc -X secret bastion 22
    nc: no proxy
    kex_exchange_identification: Connection closed by remote host
    Connection closed by UNKNOWN port 65535
a proxy command that ended before ssh had sent its greeting => ConnectError: ProxyCommand (nc) | nc: no proxy
    debug1: Executing proxy command: exec nc -X secret bastion 22
    nc: no proxy
    banner exchange: Connection to UNKNOWN port 65535: Broken pipe
a silent proxy command => ConnectError: ProxyCommand (nc) | without a message
    debug1: Executing proxy command: exec nc x
    Connection closed by UNKNOWN port 65535
no algorithm => IncompatibleError: no cipher in common | offers 3des-cbc,x | Ciphers
    debug1: Remote protocol version 2.0, remote software version OpenSSH_9.2p1
    Unable to negotiate with ::1 port 22: no matching cipher found. Their offer: 3des-cbc,x
no algorithm of a kind that is new => IncompatibleError: no moon in common | offers y
    debug1: Remote protocol version 2.0, remote software version OpenSSH_9.2p1
    Unable to negotiate with ::1 port 22: no matching moon found. Their offer: y
lost in the key exchange => CarrierError: the key exchange was not finished
    debug1: Remote protocol version 2.0, remote software version OpenSSH_9.2p1
    Connection reset by ::1 port 22
lost in the login => CarrierError: the login was not finished
    debug1: Remote protocol version 2.0, remote software version OpenSSH_9.2p1
    debug1: Server host key: ssh-ed25519 SHA256:abc
    debug1: SSH2_MSG_NEWKEYS received
    Connection closed by ::1 port 22
lost => CarrierError: the server has closed the connection
    debug1: Remote protocol version 2.0, remote software version OpenSSH_9.2p1
    Connection closed by 10.0.0.1 port 22
no word => CarrierError: without a message
an old ssh => RelayError: 8.7 | logverbose
    command-line: line 0: Bad configuration option: logverbose
a broken file => RelayError: line 3
    /home/me/.ssh/config: line 3: Bad configuration option: x
"""
KINDS = (AuthenticationError, CarrierError, ConnectError, HostKeyError, IncompatibleError, RelayError)


def errors() -> Iterator[Any]:
    for case in re.split(r"\n(?=\S)", ERRORS.strip()):
        head, *lines = case.splitlines()
        name, kind, words = re.split(" => |: ?", head, maxsplit=2)
        told = [words, *(line.removeprefix("  => ") for line in lines if line.startswith("  => "))]
        said_by_ssh = [line.removeprefix("    ") for line in lines if line.startswith("    ")]
        (error,) = [one for one in KINDS if one.__name__ == kind]
        yield pytest.param(said_by_ssh, error, " | ".join(filter(None, told)).split(" | "), id=name)


@pytest.mark.parametrize(("lines", "kind", "words"), [*errors()])
def test_errors_have_their_type_and_say_why(lines: list[str], kind: type, words: list[str]) -> None:
    error = why(HERE, lines)
    assert type(error) is kind
    text = str(error)
    assert text.startswith("ssh://me@bastion: ")
    assert "\n" not in text
    assert len(text) < 700
    assert [word for word in words if word not in text] == []


@pytest.mark.parametrize("method", ["password", "keyboard-interactive"])
def test_a_wrong_password_is_named(method: str) -> None:
    given = Settings(SSHServer("bastion", password="x"), "bastion.example", 22, "me")
    tried = f"debug1: Next authentication method: {method}"
    end = f"me@bastion.example: Permission denied ({method},publickey)."
    assert f"rejected: {method}; the password or the user name is wrong" in str(why(given, [tried, end]))
    partial = f'Authenticated using "{method}" with partial success.'
    assert "is wrong" not in str(why(given, [tried, partial, end]))


def test_a_pinned_key_is_shown_beside_the_other() -> None:
    pinned = Settings(SSHServer("bastion", hostkey="SHA256:" + "x" * 42 + "A"), "bastion", 22, "me")
    text = str(why(pinned, [KEY, "Host key verification failed."]))
    assert "SHA256:abc" in text
    assert "SHA256:" + "x" * 42 + "A" in text


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", "no answer in time"),
        ("debug1: Local version string SSH-2.0-OpenSSH", "check that it is an SSH server"),
        (REMOTE, "key exchange"),
        (KEY, "the login was not finished"),
    ],
)
def test_a_timeout_says_how_far_it_got(line: str, words: str) -> None:
    error = timeout_error(HERE, [line])
    assert error.reason == "connect_timeout"
    assert words in str(error)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["SSH2_MSG_NEWKEYS received", "rekey in after 134217728 blocks"], "asking the agent"),
        (["SSH2_MSG_NEWKEYS received", "Will attempt key: /k  explicit"], "server's reply"),
        (["Authentications that can continue: password", "read_passphrase: requested to askpass"], "for a password"),
        ([f"Offering public key: {ID}"], "reply to a key"),
        ([f"Server accepts key: {ID}", "of no meaning"], "signature"),
    ],
)
def test_a_login_that_does_not_end_says_what_ssh_does(lines: list[str], words: str) -> None:
    text = str(timeout_error(HERE, [KEY, *(f"debug1: {line}" for line in lines)]))
    assert "the login was not finished in time: ssh was " in text
    assert words in text


def test_the_last_words_are_no_chatter() -> None:
    lines = ["Timeout, server 127.0.0.1 not responding.", "debug1: x", "Transferred: sent 1", "Bytes per second: 3"]
    assert said(lines) == "Timeout, server 127.0.0.1 not responding"
    assert said(["debug1: x"]) == ""
    assert len(said(["x" * 5000])) == 300


@pytest.mark.parametrize(
    ("lines", "text"),
    [
        (["Received disconnect from ::1 port 22:11: bye.", "Disconnected from ::1 port 22"], "the server says: bye"),
        (["Received disconnect from ::1 port 22:11: one", "two"], "the server says: one two"),
        ([r"Received disconnect from ::1 port 22:2: \342\200\256C:\\x"], r"the server says: \u202eC:\x"),
        (["Received disconnect from ::1 port 22:11:", "Disconnected"], "the server says: Disconnected"),
        (["Received disconnect from ::1 port 22:11:"], "the server has closed the connection"),
    ],
)
def test_the_words_of_the_server_are_its_last(lines: list[str], text: str) -> None:
    assert said(["debug1: x", *lines]) == text


def test_what_a_server_says_cannot_reach_a_terminal_raw() -> None:
    assert decoded(b"\x1b[2Jhi\xff\r") == "\\x1b[2Jhi\ufffd"


@pytest.mark.parametrize("then", ["No more authentication methods to try.", "Next authentication method: password"])
def test_a_passphrase_that_is_wrong_is_told_from_one_that_is_missing(then: str) -> None:
    given = Settings(SSHServer("bastion", passphrase_env="X"), "bastion", 22, "me")
    lines = [
        f"debug1: Server accepts key: {ID} explicit",
        "debug1: read_passphrase: requested to askpass",
        f"debug1: {then}",
        "me@bastion: Permission denied (publickey).",
    ]
    assert "/home/me/.ssh/id is encrypted with another passphrase" in str(why(given, lines))
