"""Modules that ``import relay`` loads, and the direction of the imports of the package."""

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import WAIT

import relay

PACKAGE = Path(relay.__file__).parent
# What no tunnel needs.
FOREIGN = {"paramiko", "zmq", "i2plib", "h11", "socksio", "pydantic", "click", "rich", "asyncio", "subprocess"}
HEAVY = FOREIGN | {"ssl", "socket", "logging", "inspect", "threading"}


def loaded_by(code):
    """The names of the modules that a fresh interpreter has loaded after ``code``."""
    program = f"{code}\nimport sys\nprint(*sys.modules)"
    run = [sys.executable, "-I", "-c", f"import sys\nsys.path.insert(0, {str(PACKAGE.parent)!r})\n{program}"]
    return set(subprocess.run(run, capture_output=True, text=True, check=True, timeout=WAIT).stdout.split())


def test_import_relay_loads_next_to_nothing():
    """Which keeps it far under 100 ms on any machine."""
    modules = loaded_by("import relay")
    assert not modules & HEAVY
    assert len({name for name in modules if name.startswith("relay")}) == 1


@pytest.mark.parametrize("names", ["Tunnel, tcp, unix, Stream, nonblocking", "target, connect, listen, local, tls"])
def test_the_names_load_no_more_than_they_need(names):
    assert not loaded_by(f"from relay import {names}") & FOREIGN


def test_a_tunnel_over_tcp_needs_no_tls():
    code = "import relay\nrelay.Tunnel(relay.listen(':0'), relay.tcp('127.0.0.1', 1)).close()"
    assert not loaded_by(code) & {"ssl", *FOREIGN}


def test_a_tunnel_without_warm_streams_loads_nothing_for_them():
    code = "import relay\nrelay.Tunnel(relay.listen(':0'), relay.tcp('127.0.0.1', 1){}).close()"
    parts = {"random", "relay.engine.warm_pool", "relay.engine.warm_stream"}
    assert not loaded_by(code.format("")) & parts
    assert loaded_by(code.format(", warm=1")) >= parts


def test_the_server_of_operators_imports_nothing_that_few_ask_for():
    """Each relay with a control socket starts it; the models of relay.toml, OpenAPI and metrics of the process wait."""
    code = "import relay.cli.run, relay.daemon.operator_sockets, relay.daemon.instance, relay.operations.server"
    assert not loaded_by(code) & {"pydantic", "prometheus_client", "relay.operations.openapi"}


def test_every_public_name_is_there():
    for name in relay.__all__:
        assert getattr(relay, name) is not None
        assert name in dir(relay)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = relay.nonsense


def test_no_submodule_takes_the_place_of_a_public_name():
    """Once everything is loaded, the names are still what they were."""
    everything = "".join(f"import {name}\n" for name in sorted(module_names()) if not name.endswith("__main__"))
    check = "import relay\nassert all(not isinstance(getattr(relay, n), type(relay)) for n in relay.__all__)"
    loaded_by(everything + check)


def test_the_help_of_relay_imports_no_command():
    """Which takes most of the time that the help needs."""
    modules = loaded_by("import sys\nsys.argv = ['relay', '--help']\nfrom relay.cli import main\nassert main() == 0")
    assert "relay.cli.app" in modules
    assert not [name for name in modules if name.startswith("relay.cli.commands.")]


# Arrows; which folder may import which is in the contracts of pyproject.toml.

ALLOWED_IN = {
    "paramiko": ("transports/ssh/", "compat/", "testing/ssh"),
    "zmq": ("compat/",),
    "i2plib": ("transports/i2p/", "addresses/destinations.py"),
    "subprocess": ("process.py",),
    "pydantic": ("config/",),
    "tomli_w": ("config/",),
    "click": ("cli/",),
    "rich": ("cli/",),
    "starlette": ("operations/app.py", "operations/turns.py"),
    "uvicorn": ("operations/server.py",),
}


def module_names():
    """The dotted name of every module of the package."""
    paths = (path.relative_to(PACKAGE.parent).with_suffix("") for path in PACKAGE.rglob("*.py"))
    return {".".join(path.parts).removesuffix(".__init__") for path in paths}


@functools.cache
def sources():
    """Each file of the package with its syntax tree."""
    return [
        (path.relative_to(PACKAGE), ast.parse(path.read_text(), str(path))) for path in sorted(PACKAGE.rglob("*.py"))
    ]


def imports(path, tree, *, annotations=False):
    """The modules that a file imports when it runs, and perhaps those that only a type checker sees; dotted names."""
    for node in ast.walk(tree) if annotations else runtime_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                folder = ["relay", *path.parent.parts]
                base = ".".join([*folder[: len(folder) - node.level + 1], *filter(None, [base])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def runtime_nodes(node):
    """Every node but those that only a type checker sees."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from runtime_nodes(child)


def graph():
    """Which modules each module imports; without the packages themselves.

    An annotation is an import, except in one folder: the parts of one machine may name each other's types.
    """
    modules = module_names()
    found = {}
    for path, tree in sources():
        if path.name != "__init__.py":
            name = ".".join(["relay", *path.with_suffix("").parts])
            named = set(imports(path, tree, annotations=True))
            elsewhere = {one for one in named if one.split(".")[1:2] != [path.parts[0]]}
            found[name] = ({*imports(path, tree)} | elsewhere) & modules - {name}
    return found


def circles(found):
    """The modules that are on a circle of imports, or lead to one."""
    left = {name: wanted & found.keys() for name, wanted in found.items()}
    while leaves := {name for name, wanted in left.items() if not wanted & left.keys()}:
        for name in leaves:
            del left[name]
    return set(left)


def test_no_import_leads_back_nor_an_annotation_to_another_folder():
    found = graph()
    assert len(found) > 100
    assert circles(found) == set()


def test_the_search_for_circles_finds_one():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == {"a", "b", "c"}


def test_foreign_packages_are_imported_where_they_belong_alone():
    wrong = []
    for path, tree in sources():
        for name in imports(path, tree):
            homes = ALLOWED_IN.get(name.split(".")[0])
            if homes is not None and not str(path).startswith(homes):
                wrong.append(f"{path} imports {name}")
    assert not wrong


def test_only_the_command_prints_and_nobody_sleeps():
    wrong = []
    for path, tree in sources():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) in (
                "print",
                "sleep",
            ):
                called = ast.unparse(node.func)
                if called == "time.sleep" or (called == "print" and path.parts[0] != "cli"):
                    wrong.append(f"{path}:{node.lineno} calls {called}")
    assert not wrong


def test_the_reader_of_imports_sees_them(tmp_path):
    """A check that finds nothing because it looks at nothing would be worth nothing."""
    tree = ast.parse("if TYPE_CHECKING:\n    import zmq\ndef f():\n    from ..engine.tunnel import Tunnel\nimport ssl")
    assert set(imports(Path("api/x.py"), tree)) == {"relay.engine.tunnel", "relay.engine.tunnel.Tunnel", "ssl"}
