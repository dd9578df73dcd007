"""Logging in: against OpenSSH's server, against the embedded one, and against servers that misbehave."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import paramiko
import pytest
from helpers import PROMPT, WAIT, Thread, wait_until
from ssh_agent import RealAgent
from ssh_keys import certify, make

from relay import AuthenticationError, CarrierError
from relay.addresses.ssh import SSHServer
from relay.transports.ssh.config.identities import public_key
from relay.transports.ssh.config.settings import resolve_settings
from relay.transports.ssh.paramiko import login as authentication
from relay.transports.ssh.paramiko.login import Secrets, authenticate

pytestmark = pytest.mark.usefixtures("spawner_thread")

SECRET = "correct horse"


@pytest.fixture(autouse=True)
def no_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)


@contextlib.contextmanager
def connected(server: SSHServer) -> Iterator[paramiko.Transport]:
    """A connection before its login."""
    with socket.create_connection((server.host, server.port), 10) as sock:
        transport = paramiko.Transport(sock)
        try:
            transport.start_client(timeout=WAIT)
            yield transport
        finally:
            transport.close()
            transport.join(WAIT)


def log_in(server: SSHServer) -> None:
    with connected(server) as transport:
        authenticate(transport, resolve_settings(server))
        assert transport.is_authenticated()


def refused(server: SSHServer, error: type[OSError] = AuthenticationError) -> str:
    with pytest.raises(error) as raised:
        log_in(server)
    text = str(raised.value)
    assert type(raised.value) is error and text.startswith(f"{server}: ") and "\n" not in text
    assert SECRET not in text
    return text


def alter(server: SSHServer, **changes: Any) -> SSHServer:
    return dataclasses.replace(server, **changes)


def of(embedded: Any, **wishes: Any) -> SSHServer:
    """The embedded server, without the key that would let us in."""
    host, port = embedded.address
    return SSHServer(host, embedded.user, port, config="none", known_hosts=embedded.known_hosts, **wishes)


# -- OpenSSH's server ------------------------------------------------------------------------------------------------


def authorize(sshd: Any, *keys: Path) -> None:
    lines = "".join(Path(f"{key}.pub").read_text() for key in keys)
    (sshd.folder / "authorized_keys").write_text(lines)


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
@pytest.mark.parametrize("passphrase", ["", SECRET])
def test_a_key_file(make_sshd: Any, tmp_path: Path, kind: str, passphrase: str) -> None:
    sshd = make_sshd()
    key = make(tmp_path / "key", kind, "-N", passphrase)
    authorize(sshd, key)
    log_in(alter(sshd.server, keyfile=str(key), passphrase=passphrase or None))
    sshd.wait_for("Accepted publickey")  # the line may come after the answer to the client


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
@pytest.mark.parametrize("where", ["file", "agent"])
def test_a_certificate(make_sshd: Any, tmp_path: Path, kind: str, where: str) -> None:
    authority, key = make(tmp_path / "ca"), make(tmp_path / "key", kind)
    sshd = make_sshd(f"TrustedUserCAKeys {authority}.pub", "AuthorizedKeysFile none")
    certificate = certify(key, authority, "-n", sshd.user)
    server = alter(sshd.server, keyfile=str(key))
    if where == "file":
        log_in(server)
        return
    with RealAgent(tmp_path / "agent") as agent:
        agent.add(key)
        certificate.unlink()
        key.unlink()
        config = tmp_path / "config"
        config.write_text(f"IdentityAgent {agent.path}\nIdentityFile none\n")
        log_in(alter(server, keyfile=None, config=str(config)))


@pytest.mark.parametrize("kind", ["ed25519", "rsa"])
def test_the_agent(make_sshd: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    sshd = make_sshd()
    key, other = make(tmp_path / "key", kind), make(tmp_path / "other")
    authorize(sshd, key)
    with RealAgent(tmp_path / "agent") as agent:
        for path in (other, key):
            agent.add(path)
            path.unlink()
        monkeypatch.setenv("SSH_AUTH_SOCK", agent.path)
        log_in(alter(sshd.server, keyfile=f"{key}.pub"))
        (tmp_path / "config").write_text("IdentityFile none\n")
        log_in(alter(sshd.server, keyfile=None, config=str(tmp_path / "config")))
        text = refused(alter(sshd.server, keyfile=f"{other}.pub"))
    assert f"rejected: {other}.pub (ED25519 SHA256:" in text


def test_two_keys_that_the_server_both_wants(make_sshd: Any, tmp_path: Path) -> None:
    sshd = make_sshd("AuthenticationMethods publickey,publickey")
    keys = [make(tmp_path / name) for name in ("first", "wrong", "second")]
    authorize(sshd, keys[0], keys[2])
    config = tmp_path / "config"
    config.write_text("".join(f"IdentityFile {key}\n" for key in keys))
    log_in(alter(sshd.server, keyfile=None, config=str(config)))
    text = refused(alter(sshd.server, keyfile=str(keys[0])))
    assert f"accepted, but not enough: {keys[0]} (ED25519 SHA256:" in text and "accepts publickey now" in text


def test_a_refusal_says_everything(make_sshd: Any, tmp_path: Path) -> None:
    (tmp_path / "banner").write_text("authorised \x1b[31m staff\n\tonly\n")
    sshd = make_sshd(f"Banner {tmp_path}/banner")
    keys = [make(tmp_path / name) for name in ("one", "two")]
    locked = make(tmp_path / "locked", "ed25519", "-N", SECRET)
    config = tmp_path / "config"
    config.write_text("".join(f"IdentityFile {key}\n" for key in (*keys, locked)))
    text = refused(alter(sshd.server, keyfile=None, config=str(config)))
    assert (
        f"login as {sshd.user} was rejected; the server accepts publickey; rejected: {keys[0]} (ED25519 SHA256:" in text
    )
    assert f", {keys[1]} (ED25519 SHA256:" in text and f"{locked} is encrypted and there is no passphrase" in text
    assert "authorized_keys" in text and text.endswith(r"its banner: authorised \x1b[31m staff only")


def test_too_many_keys_end_with_an_error_that_says_so(make_sshd: Any, tmp_path: Path) -> None:
    sshd = make_sshd("MaxAuthTries 2")
    config = tmp_path / "config"
    config.write_text("".join(f"IdentityFile {make(tmp_path / str(number))}\n" for number in range(4)))
    text = refused(alter(sshd.server, keyfile=None, config=str(config)))
    assert "Too many authentication failures" in text and "set keyfile to the right key" in text


# -- passwords, against the embedded server ---------------------------------------------------------------------------


def test_a_password(make_ssh_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    word = "pässwörd"
    server = make_ssh_server(users={"me": word})
    (tmp_path / "word").write_text(word)
    (tmp_path / "word").chmod(0o600)
    monkeypatch.setenv("RELAY_WORD", word)
    for wish in (
        {"password": word},
        {"password": lambda: word},
        {"password": lambda prompt: word if prompt == "me@127.0.0.1's password: " else ""},
        {"password_file": str(tmp_path / "word")},
        {"password_env": "RELAY_WORD"},
    ):
        log_in(of(server, **wish))


def test_a_secret_that_cannot_be_had(make_ssh_server: Any) -> None:
    server = make_ssh_server(users={"me": SECRET})
    assert "No such file" in refused(of(server, password_file="/no/file"))
    for wish in (lambda: 1 / 0, lambda prompt: 1 / 0):
        assert "raised ZeroDivisionError" in refused(of(server, password=wish))


def test_a_password_has_its_turn_after_a_few_keys(make_ssh_server: Any, tmp_path: Path) -> None:
    server = make_ssh_server(users={"me": SECRET})
    config = tmp_path / "config"
    config.write_text("".join(f"IdentityFile {make(tmp_path / str(number))}\n" for number in range(8)))
    text = refused(alter(of(server, password="wrong"), config=str(config)))
    assert text.count("SHA256:") == authentication.KEYS_BEFORE_PASSWORD and ", password" in text
    log_in(alter(of(server, password=SECRET), config=str(config)))


QUESTIONS = [("Password: ", SECRET), ("Code\n: ", "123456")]


def test_questions_go_to_the_callable_one_by_one(make_ssh_server: Any) -> None:
    asked: list[str] = []

    def answer(prompt: str) -> str:
        asked.append(prompt)
        return SECRET if "Password" in prompt else "123456"

    log_in(of(make_ssh_server(questions=QUESTIONS), password=answer))
    assert asked == ["Password: ", "Code : "]


@pytest.mark.parametrize("word", [SECRET, lambda: SECRET])
def test_one_hidden_question_is_answered_with_the_password(make_ssh_server: Any, word: Any) -> None:
    log_in(of(make_ssh_server(questions=QUESTIONS[:1]), password=word))


def test_a_second_question_is_not_answered_with_the_password(make_ssh_server: Any) -> None:
    text = refused(of(make_ssh_server(questions=QUESTIONS), password=SECRET))
    assert "the server asks 'Code :'; set password to a callable to answer it" in text and "is wrong" not in text


@pytest.mark.parametrize("wish", ["password", "question", "passphrase"])
def test_a_callable_that_hangs_holds_nobody_who_closes(make_ssh_server: Any, tmp_path: Path, wish: str) -> None:
    called, go_on = threading.Event(), threading.Event()

    def hang(prompt: str) -> str:
        called.set()
        go_on.wait(WAIT)
        return SECRET

    embedded = make_ssh_server(users={"me": SECRET}, questions=QUESTIONS if wish == "question" else [])
    server = of(embedded, password=hang)
    if wish == "passphrase":
        locked = make(tmp_path / "locked", "ed25519", "-N", SECRET)
        server = of(embedded, keyfile=str(locked), passphrase=hang)
    with connected(server) as transport:
        thread = Thread(authenticate, transport, resolve_settings(server))
        assert called.wait(WAIT)
        transport.close()
        with pytest.raises(CarrierError, match="lost while relay waited for a secret"):
            thread.result(PROMPT)
    go_on.set()


@pytest.mark.parametrize(
    "steps",
    ["publickey,password", "password,publickey", "publickey,keyboard-interactive", "password,keyboard-interactive"],
)
def test_several_steps(make_ssh_server: Any, steps: str) -> None:
    server = make_ssh_server(users={"me": SECRET}, questions=QUESTIONS[:1], methods=[steps])
    log_in(of(server, password=SECRET, keyfile=server.keyfile))
    text = refused(of(server, password="wrong", keyfile=server.keyfile))
    if steps.startswith("publickey"):
        assert f"accepted, but not enough: {server.keyfile} (ED25519" in text and " now; " in text
    else:
        assert "the server accepts password; rejected: password" in text


def test_a_long_banner_is_cut(make_ssh_server: Any) -> None:
    text = refused(of(make_ssh_server(users={"me": SECRET}, banner="x" * 5000), password="wrong"))
    assert text.endswith("x…") and len(text) < 1000


def test_no_secret_is_in_the_log(make_ssh_server: Any, caplog: pytest.LogCaptureFixture) -> None:
    server = make_ssh_server(users={"me": SECRET}, questions=QUESTIONS[:1])
    with caplog.at_level(logging.DEBUG):
        log_in(of(server, password=SECRET))
        log_in(of(server, password=lambda prompt: SECRET))
    assert SECRET not in caplog.text


# -- servers that misbehave -------------------------------------------------------------------------------------------


class Hostile(paramiko.ServerInterface):  # type: ignore[misc]
    """A server whose answers the test makes up."""

    def __init__(self, methods: str = "password,keyboard-interactive,publickey", **answers: Any) -> None:
        self.methods = methods
        self.answers = answers
        self.tried: list[str] = []

    def get_allowed_auths(self, username: str) -> str:
        return self.methods

    def _answer(self, method: str) -> Any:
        self.tried.append(method)
        answer = self.answers.get(method, paramiko.AUTH_FAILED)
        return answer() if callable(answer) else answer

    def check_auth_none(self, username: str) -> Any:
        return self._answer("none")

    def check_auth_password(self, username: str, password: str) -> Any:
        return self._answer("password")

    def check_auth_publickey(self, username: str, key: Any) -> Any:
        return self._answer("publickey")

    def check_auth_interactive(self, username: str, submethods: str) -> Any:
        return self._answer("interactive")

    def check_auth_interactive_response(self, responses: list[str]) -> Any:
        return self._answer("response")


@pytest.fixture
def hostile() -> Iterator[Callable[[Hostile], tuple[SSHServer, paramiko.Transport]]]:
    """``hostile(interface)``: a server that uses it, and the transport at its end."""
    with contextlib.ExitStack() as undo:

        def make_one(interface: Hostile) -> tuple[SSHServer, paramiko.Transport]:
            listening = undo.enter_context(socket.create_server(("127.0.0.1", 0)))
            made: list[paramiko.Transport] = []
            ready = threading.Event()

            def serve() -> None:
                transport = paramiko.Transport(listening.accept()[0])
                made.append(transport)
                transport.add_server_key(paramiko.ECDSAKey.generate())
                ready.set()
                transport.start_server(server=interface, event=threading.Event())
                transport.join(WAIT)

            thread = Thread(serve)
            undo.callback(thread.result)
            undo.callback(lambda: made[0].close() if made else None)
            port = listening.getsockname()[1]
            return SSHServer("127.0.0.1", "me", port, config="none", password=SECRET), made  # type: ignore[return-value]

        yield make_one


def test_a_server_that_is_never_content(hostile: Any) -> None:
    interface = Hostile(password=paramiko.AUTH_PARTIALLY_SUCCESSFUL)
    text = refused(hostile(interface)[0])
    assert "accepted, but not enough: password" in text and interface.tried.count("password") == 1


@pytest.mark.parametrize("word", [SECRET, lambda prompt: SECRET])
def test_a_server_that_asks_for_ever(hostile: Any, word: Any) -> None:
    def ask() -> paramiko.InteractiveQuery:
        return paramiko.InteractiveQuery("", "", ("Password: ", False))

    interface = Hostile("keyboard-interactive", interactive=ask, response=ask)
    text = refused(alter(hostile(interface)[0], password=word))
    assert "too many questions" in text
    assert interface.tried.count("response") == authentication.MOST_QUESTIONS


def test_a_server_that_asks_too_much_at_once(hostile: Any) -> None:
    def ask() -> paramiko.InteractiveQuery:
        query = paramiko.InteractiveQuery("", "")
        query.prompts = [("?", False)] * 100
        return query

    text = refused(hostile(Hostile("keyboard-interactive", interactive=ask))[0], CarrierError)
    assert "questions at once" in text


def test_methods_that_nobody_knows(hostile: Any) -> None:
    text = refused(hostile(Hostile("x\x1b[31m" * 100 + ",gssapi-with-mic,hostbased"))[0])
    assert "\x1b" not in text and len(text) < 600
    assert "backend='openssh' (in an address: ?backend=openssh) supports GSSAPI and host-based login" in text


def test_a_server_that_accepts_the_service_twice(hostile: Any) -> None:
    """The service request is not sent again."""
    interface = Hostile("password")
    server, made = hostile(interface)

    def accept_again() -> int:
        message = paramiko.Message()
        message.add_byte(b"\x06")
        message.add_string("ssh-userauth")
        made[0]._send_message(message)
        return int(paramiko.AUTH_FAILED)

    interface.answers["password"] = accept_again
    refused(server)
    assert interface.tried == ["none", "password"]


def test_a_server_that_asks_a_question_unasked(hostile: Any) -> None:
    interface = Hostile("password")
    server, made = hostile(interface)

    def ask() -> int:
        made[0].auth_handler._interactive_query(paramiko.InteractiveQuery("", "", ("Password: ", False)))
        return int(paramiko.AUTH_FAILED)

    interface.answers["password"] = ask
    assert "a question without a request" in refused(server, CarrierError)


def test_many_credentials_at_a_server_that_accepts_one_request_for_the_service(
    make_ssh_server: Any, tmp_path: Path
) -> None:
    """RFC 4253, section 10; servers in Go, Erlang and Python end the connection at a second one."""
    server = make_ssh_server(
        users={"me": SECRET}, methods=["publickey,password,keyboard-interactive"], questions=QUESTIONS
    )
    config = tmp_path / "config"
    config.write_text("".join(f"IdentityFile {path}\n" for path in (make(tmp_path / "other"), server.keyfile)))
    answer = {"me@127.0.0.1's password: ": SECRET, "Password: ": SECRET, "Code : ": "123456"}
    log_in(alter(of(server, password=lambda prompt: answer[prompt]), config=str(config)))
    assert [method for _, method in server.attempts if method != "keyboard-interactive"][:4] == [
        "none",
        "publickey",
        "publickey",
        "password",
    ]


@pytest.mark.parametrize("taken", [b"ssh-ed25519", b"ssh-rsa"])  # the latter is RSA with SHA-1
def test_an_rsa_key_for_which_no_signature_can_be_agreed_on(sshd: Any, tmp_path: Path, taken: bytes) -> None:
    key = make(tmp_path / "key", "rsa")
    server = alter(sshd.server, keyfile=str(key))
    with connected(server) as transport:
        wait_until(lambda: transport.server_extensions)  # they come right after the keys
        transport.server_extensions = {"server-sig-algs": taken}
        with pytest.raises(AuthenticationError, match=f"{key} was not tried: the server accepts no RSA"):
            authenticate(transport, resolve_settings(server))


# -- agents that misbehave --------------------------------------------------------------------------------------------


def test_an_agent_that_goes_away_before_it_signs(sshd: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = make(tmp_path / "key")
    with RealAgent(tmp_path / "agent") as agent:
        agent.add(key)
        with connected(sshd.server) as transport:
            settings = dataclasses.replace(
                resolve_settings(sshd.server), agent=agent.path, identities=(f"{key}.pub", str(sshd.keyfile))
            )
            login = authentication._Login(transport, settings)
            ask = login.keys._ask_agent

            def ask_and_forget() -> None:
                ask()
                agent.remove_all()

            monkeypatch.setattr(login.keys, "_ask_agent", ask_and_forget)
            login.run()
            login.keys.close()
            assert login.notes == [f"{key}.pub gave no signature: the agent has rejected the request"]


def test_an_agent_that_hangs_holds_nobody_who_closes(sshd: Any, tmp_path: Path) -> None:
    path = tmp_path / "agent"
    raw = public_key(f"{sshd.keyfile}.pub")
    assert raw is not None
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        signing = threading.Event()

        def serve() -> None:
            with listening.accept()[0] as client:
                client.settimeout(WAIT)
                client.recv(5)
                body = b"\x0c\0\0\0\x01" + len(raw).to_bytes(4, "big") + raw + b"\0\0\0\0"
                client.sendall(len(body).to_bytes(4, "big") + body)
                client.recv(1)
                signing.set()
                with contextlib.suppress(OSError):
                    while client.recv(1 << 16):
                        pass

        agent = Thread(serve)
        settings = dataclasses.replace(
            resolve_settings(alter(sshd.server, keyfile=f"{sshd.keyfile}.pub")), agent=str(path)
        )
        with connected(sshd.server) as transport:
            thread = Thread(authenticate, transport, settings)
            assert signing.wait(WAIT)
            transport.close()
            with pytest.raises(CarrierError):
                thread.result()  # the agent has two minutes
            transport.join(WAIT)
        agent.result()


def test_nothing_reads_the_terminal(sshd: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*args: Any) -> Any:
        raise AssertionError("a prompt")

    for name in ("builtins.input", "getpass.getpass"):
        monkeypatch.setattr(name, fail)
    refused(alter(sshd.server, keyfile=str(make(tmp_path / "locked", "ed25519", "-N", SECRET))))


# -- secrets ---------------------------------------------------------------------------------------------------------


def secrets(password: Any, is_active: Any = lambda: True) -> Secrets:
    settings = SimpleNamespace(
        server=SSHServer("host", "me", 22, password=password), user="me", hostname="host", name="ssh://me@host"
    )
    return Secrets(settings, is_active)  # type: ignore[arg-type]


def test_a_callable_without_parameters_is_called_once() -> None:
    calls: list[None] = []
    made = secrets(lambda: calls.append(None) or "word")
    assert (made.answer("code? "), made.password(), len(calls)) == ("word", "word", 1)


def test_without_threads_the_login_is_retried(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(CarrierError, match="can't start new thread"):
        secrets("word").password()
