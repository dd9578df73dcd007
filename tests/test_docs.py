"""What the README and the pages of docs/ show is true."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import itertools
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from documents import ALL, PAGES, README, ROOT
from helpers import WAIT

import relay
from relay.addresses.i2p import I2PListen
from relay.addresses.parse import parse_hops, parse_listen, parse_target
from relay.addresses.values import I2P_LISTEN_PARAMETERS, SSH_PARAMETERS, SSHListen
from relay.compat import rforward, zmqssh
from relay.streams import interfaces
from relay.transports.ssh.config.settings import CLIENT_ONLY

CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
PROGRAMS = re.findall(r"^```python\n(.*?)^```", ALL, re.DOTALL | re.MULTILINE)
LISTENING = [program for program in PROGRAMS if "listening on" in program]  # what others do, the tour's test tries
COMMANDS = re.findall(r"^\$ (relay (?:forward|expose) .*?)(?: +#.*)?$", ALL, re.MULTILINE)


@pytest.mark.parametrize("program", LISTENING, ids=range(len(LISTENING)))
def test_the_programs_run(program):
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=WAIT, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("listening on ('127.0.0.1', ")


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_are_understood(command):
    words = shlex.split(command)
    values = dict(itertools.pairwise(words))
    if words[1] == "forward":
        parse_listen(words[2])
        parse_target(words[3])
    else:
        parse_target(words[2])
        assert isinstance(parse_listen(values["--on"]), (SSHListen, I2PListen))
    parse_hops([hop for option, hop in itertools.pairwise(words) if option == "--via"])
    done = subprocess.run(
        # The last word is one too many: everything before it was understood.
        [str(Path(sys.executable).parent / "relay"), *words[1:], "surplus"],
        capture_output=True, text=True, timeout=WAIT, check=False,
    )  # fmt: skip
    assert "unexpected extra argument(s) (surplus)" in done.stderr


SAMPLES = {path.name: path.read_text() for path in sorted((ROOT / "samples").glob("*.py"))}
SHOWN = {**{f"document {number}": program for number, program in enumerate(PROGRAMS)}, **SAMPLES}


@pytest.mark.parametrize("program", SHOWN.values(), ids=SHOWN)
def test_no_example_ends_connections_after_a_minute(program):
    calls = [node for node in ast.walk(ast.parse(program)) if isinstance(node, ast.Call)]
    tunnels = [call for call in calls if ast.unparse(call.func) in ("relay.Tunnel", "relay.aio.Tunnel", "Tunnel")]
    for call in tunnels:
        assert "timeout=None" in ast.unparse(call)


def test_examples_of_tunnels_are_found():
    assert sum("relay.Tunnel(" in program for program in SHOWN.values()) >= 8


def test_it_shows_programs_and_commands():
    assert len(LISTENING) >= 2 and len(PROGRAMS) == len(LISTENING) + 1
    assert len(COMMANDS) >= 5
    assert {command.split()[1] for command in COMMANDS} == {"forward", "expose"}


def test_every_public_name_is_in_it_and_every_name_in_it_is_public():
    named = set(re.findall(r"`relay\.(\w+)", ALL)) - {"aio", "compat", "testing", "toml"}
    assert named <= set(relay.__all__)
    functions = {name for name in relay.__all__ if not name.endswith("Error")}
    assert functions <= named


API = set(re.findall(r"^\.\. auto(?:function|class|exception|data):: ([\w.]+)$", PAGES["api"], re.MULTILINE))


@pytest.mark.parametrize(
    "module", [relay, relay.aio, relay.testing, zmqssh, rforward, interfaces], ids=lambda module: module.__name__
)
def test_the_reference_has_an_entry_for_every_public_name(module):
    if f".. automodule:: {module.__name__}\n   :members:" in PAGES["api"]:
        return  # all of its names, by themselves
    shown = {name.rpartition(".")[2] for name in API if name.rpartition(".")[0] == module.__name__}
    assert shown == set(module.__all__)


@pytest.mark.parametrize("page", sorted(PAGES))
def test_every_page_is_on_the_index(page):
    toctrees = re.findall(r"^```{toctree}\n(.*?)^```", PAGES["index"], re.DOTALL | re.MULTILINE)
    listed = {line for toctree in toctrees for line in toctree.splitlines()}
    assert page in {"index", *listed} or (ROOT / "docs" / "reference" / f"{page}.md").exists()


def test_its_only_make_commands_are_demo_and_test():
    assert set(re.findall(r"\bmake ([a-z]+)\b", README)) == {"demo", "test"}


@pytest.mark.parametrize("text", [README, CONTRIBUTING], ids=["README", "CONTRIBUTING"])
def test_every_make_command_and_every_file_exists(text):
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"\bmake ([a-z]+)\b", text):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for name in re.findall(r"`((?:relay|tests|samples|benchmarks)/[\w./-]*)`", text):
        assert (ROOT / name).exists(), name
    for name in re.findall(r"\]\(([\w/-]+\.md)\)", text):
        assert (ROOT / name).exists(), name


def test_the_layout_names_every_folder_and_module_of_the_package():
    entries = {path.name for path in (ROOT / "relay").glob("[!_.]*") if path.name != "py.typed"}
    assert {name for name in entries - {"errors.py"} if f"`relay/{name}" not in CONTRIBUTING} == set()


def test_the_picture_of_the_layers_is_drawn_from_the_imports():
    script = ROOT / "docs" / "draw_layers.py"
    drawn = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=WAIT, check=True
    ).stdout
    assert drawn == (ROOT / "docs" / "layers.svg").read_text(), f"run: python {script} > docs/layers.svg"


@pytest.mark.parametrize("path", sorted((ROOT / "relay").rglob("__init__.py")), ids=lambda path: path.parent.name)
def test_every_folder_says_what_it_is(path):
    assert ast.get_docstring(ast.parse(path.read_text()))


@pytest.fixture(scope="module")
def check_words():
    spec = importlib.util.spec_from_file_location("check_words", ROOT / "docs" / "check_words.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_forbidden_words_are_found_in_strings_and_comments(check_words, tmp_path):
    path = tmp_path / "program.py"
    path.write_text('"""Fine."""\ntold = 1  # whoever reads\nerror = (\n    f"{told}: a port\\n"\n    "is wanted"\n)\n')
    assert [(line, text.split(";")[0]) for line, text in check_words.words(path)] == [
        (2, "'whoever'"),
        (4, "'told'"),
        (5, "'is wanted'"),
    ]


def test_forbidden_words_are_found_in_pages(check_words, tmp_path):
    path = tmp_path / "page.md"
    path.write_text("# A page\n\nIt is told\nas ever. Toldo is not.\n")
    assert [(line, text.split(";")[0]) for line, text in check_words.words(path)] == [(3, "'told'"), (4, "'as ever'")]


def test_docstrings_that_begin_with_a_clause_are_found(check_words, tmp_path):
    path = tmp_path / "program.py"
    path.write_text(
        '"""What it is."""\n\n\ndef find():\n    """Find it."""\n\n\ndef is_up():\n    """Whether it is up."""\n'
    )
    assert [line for line, _ in check_words.openings(path)] == [1, 8]


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 150


def anchors(text):
    """The anchors of a page's headings, as GitHub makes them."""
    return {
        re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")
        for title in re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    }


@pytest.mark.parametrize(
    "path", [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))], ids=lambda path: path.stem
)
def test_every_link_leads_somewhere(path):
    for name, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", path.read_text()):
        there = path if not name else path.parent / name
        assert there.exists(), name
        assert not anchor or anchor in anchors(there.read_text()), f"{name}#{anchor}"


@pytest.mark.parametrize(("column", "made"), [(2, relay.Tunnel), (4, relay.TunnelServer), (4, relay.TunnelClient)])
def test_the_table_of_limits_has_the_defaults(column, made):
    rows = [
        [cell.strip(" `") for cell in row.strip("|").split("|")] for row in PAGES["limits"].splitlines() if "|" in row
    ]
    shown = {row[0]: row[column] for row in rows if len(row) == 5}
    parameters = inspect.signature(made).parameters
    for name in ("nconnect", "timeout", "connect_timeout", "idle_timeout", "linger"):
        default = parameters[name].default
        assert shown[name].replace("−", "-") == ("none" if default is None else f"{default:g}"), name


def test_every_reason_has_its_row():
    rows = set(re.findall(r"^\| `(\w+)` \|", PAGES["limits"], re.MULTILINE))
    reasons = "done refused unreachable connect_timeout idle lifetime linger client_reset target_reset carrier_lost"
    assert {*reasons.split(), "factory_error", "denied", "closed"} <= rows


def test_every_parameter_of_a_hop_is_in_it():
    for name in set(SSH_PARAMETERS) - {"password", "passphrase"}:
        assert f"`{name}" in PAGES["ssh"], name


def test_every_parameter_of_i2p_is_in_it():
    for name in set(I2P_LISTEN_PARAMETERS) - {"password"}:
        assert f"`{name}" in PAGES["i2p"], name


def test_everything_that_forces_the_openssh_client_is_in_it():
    assert len(CLIENT_ONLY) >= 10
    for need in CLIENT_ONLY:
        word = re.search(r"sk-|@[a-z-]+|\b[A-Z]\w+", need.option)
        assert word[0] in PAGES["ssh"], need.option


def test_the_file_of_tunnels_is_right(tmp_path):
    (text,) = re.findall(r"^```toml\n(.*?)^```", ALL, re.DOTALL | re.MULTILINE)
    (tmp_path / "key").write_text("")
    (tmp_path / "relay.toml").write_text(text.replace("~/.ssh/work", str(tmp_path / "key")))
    program = str(Path(sys.executable).parent / "relay")
    done = subprocess.run(
        [program, "check", "--print", str(tmp_path / "relay.toml")],
        capture_output=True, text=True, timeout=WAIT, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert [*tomllib.loads(done.stdout)["tunnels"]] == ["db", "site", "proxy"]


@pytest.mark.parametrize("line", re.findall(r"^\$ relay check --print -- (.*?)(?: +# .*)?$", ALL, re.MULTILINE))
def test_a_command_line_becomes_a_file(line):
    program = str(Path(sys.executable).parent / "relay")
    done = subprocess.run(
        [program, "check", "--print", "--", *shlex.split(line)], capture_output=True, text=True, timeout=WAIT
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert tomllib.loads(done.stdout)["tunnels"]
