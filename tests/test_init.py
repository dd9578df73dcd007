"""``import relay``: the public names, quickly."""

import subprocess
import sys
from pathlib import Path

import pytest

import relay

PACKAGE = Path(relay.__file__).parent


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True).stdout


@pytest.mark.parametrize("name", relay.__all__)
def test_every_public_name_is_there_and_documented(name):
    assert getattr(relay, name).__doc__
    assert name in dir(relay)


def test_dir_has_the_public_names_alone():
    assert set(dir(relay)) == {*relay.__all__, "aio", "types"}
    shown = run("import relay, relay.testing, relay.cli; print(*dir(relay))").split()
    assert set(shown) == {*relay.__all__, "aio", "types"}


def test_another_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'relay' has no attribute 'tunnels'"):
        relay.tunnels  # noqa: B018


def test_no_public_name_is_that_of_a_module():
    # The import of such a module would put it in the name's place: `relay.tls` would be it, and no factory any more.
    modules = {path.stem for path in PACKAGE.iterdir()}
    assert not modules & set(relay.__all__)


def test_importing_relay_imports_neither_its_modules_nor_the_libraries():
    loaded = run("import sys, relay; print(*(name for name in sys.modules if name.startswith('relay')))").split()
    assert loaded == ["relay"]


def test_no_public_name_imports_a_library():
    code = "import sys, relay; [getattr(relay, name) for name in relay.__all__]; print(*sys.modules)"
    assert not {"paramiko", "zmq", "i2plib", "click", "rich"} & set(run(code).split())


def test_it_is_typed():
    assert (PACKAGE / "py.typed").exists()
