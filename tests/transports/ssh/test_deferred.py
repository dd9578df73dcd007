"""A deferred module is there when it is used."""

import os
import socket
import subprocess
import sys

from helpers import WAIT, receive_exactly
from sshd import embedded, server_url

import relay


def run(code):
    """Return what a fresh interpreter prints."""
    program = f"import sys\nfrom relay.transports.ssh import deferred\n{code}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=WAIT, check=True)
    return done.stdout.split()


def test_invoke_is_not_loaded_before_it_is_used():
    said = run(
        "deferred.defer_invoke()\nimport invoke\nprint('invoke.runners' in sys.modules)\n"
        "invoke.run\nprint('invoke.runners' in sys.modules)"
    )
    assert said == ["False", "True"]


def test_a_look_at_all_modules_does_not_load_it():
    """Pydantic has one for each table of relay.toml."""
    code = "deferred.defer_invoke()\nimport inspect\ninspect.getmodule(inspect.currentframe())\n"
    assert run(f"{code}print('invoke.runners' in sys.modules)") == ["False"]


def test_who_imported_it_first_sees_the_real_one():
    code = "deferred.defer_invoke()\nimport invoke as early\nimport invoke.tasks\nimport invoke\n"
    assert run(f"{code}print(early.run is invoke.run)") == ["True"]


def test_without_invoke_it_is_still_missing():
    code = "deferred.find_spec = lambda name: None\ndeferred.defer_invoke()\nprint('invoke' in sys.modules)"
    assert run(code) == ["False"]


def test_invoke_is_left_alone_if_it_is_loaded_already():
    assert run("import invoke\ndeferred.defer_invoke()\nprint(sys.modules['invoke'] is invoke)") == ["True"]


def test_a_child_of_spawn_does_not_load_it(make_ssh_server, echo_server, tmp_path, monkeypatch):
    """One on the path tells that it was imported."""
    told = tmp_path / "told"
    (tmp_path / "invoke").mkdir()
    (tmp_path / "invoke" / "__init__.py").write_text(f"open({str(told)!r}, 'w').close()\nraise ImportError\n")
    monkeypatch.syspath_prepend(tmp_path)
    url = server_url(embedded(make_ssh_server()), backend="paramiko")
    with relay.spawn(":0", "{}:{}".format(*echo_server.address), via=[url]) as tunnel:
        with socket.create_connection(tunnel.address, WAIT) as client:
            client.sendall(b"through")
            assert receive_exactly(client, 7) == b"through"
    assert not told.exists()
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    subprocess.run([sys.executable, "-c", "import paramiko"], env=environment, timeout=WAIT, check=True)
    assert told.exists()
