"""``relay.spawn``: what it takes, and what comes of a child that does not start."""

import os
import socket
import sys
import threading

import pytest
from helpers import WAIT

import relay
from relay.spawning import parent
from relay.testing import SAMBridge


def test_a_program_without_an_interpreter(monkeypatch):
    monkeypatch.setattr(sys, "executable", "")
    with pytest.raises(relay.RelayError, match="use a Tunnel"):
        relay.spawn(":0", "127.0.0.1:1")


def test_a_frozen_program_is_not_started_as_an_interpreter(monkeypatch):
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    with pytest.raises(relay.RelayError, match="use a Tunnel"):
        relay.spawn(":0", "127.0.0.1:1")


def test_a_child_that_cannot_start_says_why(monkeypatch, capfd):
    monkeypatch.setattr(parent, "_path", list)
    with pytest.raises(relay.RelayError, match=r"ended with status 1; see its standard error"):
        relay.spawn(":0", "127.0.0.1:1")
    assert "No module named 'relay'" in capfd.readouterr().err


def test_a_child_that_is_killed_as_it_starts(monkeypatch):
    monkeypatch.setattr(parent, "_CHILD", "import os; os.kill(os.getpid(), 9)")
    with pytest.raises(relay.RelayError, match=r"was killed by signal 9"):
        relay.spawn(":0", "127.0.0.1:1")


def test_a_child_that_is_killed_before_it_listens(monkeypatch, caplog):
    kill = "import relay.spawning.worker; relay.spawning.worker.Recipe.make = lambda *_: os.kill(os.getpid(), 9)"
    monkeypatch.setattr(parent, "_CHILD", parent._CHILD.replace("from relay", f"{kill}\nfrom relay"))
    with pytest.raises(relay.RelayError, match=r"^the child process did not start: it was killed by signal 9; see its"):
        relay.spawn(":0", "127.0.0.1:1")
    assert caplog.messages == []


def test_a_program_without_a_thread_left(monkeypatch):
    start = threading.Thread.start

    def exhausted(thread):
        if thread.name.startswith("relay worker"):
            raise RuntimeError("can't start new thread")
        start(thread)

    with monkeypatch.context() as patch, socket.create_server(("127.0.0.1", 0)) as listening:
        patch.setattr(threading.Thread, "start", exhausted)
        with pytest.raises(RuntimeError, match="thread"):
            relay.spawn(listening, "127.0.0.1:1")
        assert listening.fileno() >= 0


def test_a_child_that_does_not_listen_in_time(monkeypatch):
    monkeypatch.setattr("relay.spawning.parent._START", 0.2)
    monkeypatch.setattr(parent, "_CHILD", "import signal; signal.pause()")
    with pytest.raises(relay.RelayError, match=r"did not listen within"):
        relay.spawn(":0", "127.0.0.1:1")


def test_a_child_that_listens_at_i2p_has_more_time(monkeypatch, echo_server):
    monkeypatch.setattr("relay.spawning.child_tunnel._START", 0.2)
    with SAMBridge() as router:
        router.hold_answers("SESSION CREATE")
        threading.Timer(0.5, router.release_answers).start()
        with relay.spawn(f"i2p:?sam={router.sam}", "{}:{}".format(*echo_server.address)) as tunnel:
            with relay.connect(f"i2p://{tunnel.address}?sam={router.sam}", timeout=WAIT) as client:
                client.sendall(b"hello")
                assert client.recv(100) == b"hello"


def test_an_unknown_keyword_is_refused():
    with pytest.raises(TypeError, match=r"^spawn\(\) got an unexpected keyword argument 'on_end'$"):
        relay.spawn(":0", "127.0.0.1:1", on_end=print)  # type: ignore[call-overload]


def test_a_factory_is_no_target():
    with pytest.raises(TypeError, match=r"target: .*needs a Tunnel"):
        relay.spawn(":0", relay.tcp("127.0.0.1", 1))  # type: ignore[arg-type]


@pytest.mark.parametrize("listen", [8080, None, b":0", object()])
def test_what_is_nowhere_to_listen(listen):
    with pytest.raises(TypeError, match="listen: "):
        relay.spawn(listen, "127.0.0.1:1")


def test_the_child_looks_for_modules_where_the_program_does(monkeypatch, capfd):
    monkeypatch.setattr(parent, "_CHILD", parent._CHILD.split("from relay")[0] + "sys.exit(sys.path[0])")
    monkeypatch.syspath_prepend("/somewhere else")
    with pytest.raises(relay.RelayError, match="did not start"):
        relay.spawn(":0", "127.0.0.1:1")
    lines = [line for line in capfd.readouterr().err.splitlines() if "ResourceWarning" not in line]
    assert lines == ["/somewhere else"]


def test_the_child_finds_this_package_wherever_it_was_found(monkeypatch):
    """An editable installation may find it by a hook, and its directory is not in the path then."""
    home = os.path.dirname(os.path.dirname(relay.__file__))
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if os.path.abspath(entry) != home])
    with relay.spawn(":0", "127.0.0.1:1") as tunnel:
        assert tunnel.stats().accepted == 0
