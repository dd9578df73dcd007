"""The examples of the README and of the pages of docs/ are true."""

from __future__ import annotations

import ast
import fnmatch
import importlib.util
import inspect
import itertools
import json
import logging
import re
import shlex
import subprocess
import sys
import tomllib

import pytest
from browser import browser, opened
from command_rig import run
from documents import ALL, PAGES, README, ROOT
from helpers import WAIT

import relay
from relay import types
from relay.addresses.hops import listens_at_server
from relay.addresses.i2p import I2PListen, I2PRouter
from relay.addresses.options import options_of
from relay.addresses.parse import parse_hops, parse_listen, parse_target
from relay.addresses.ssh import SSHServer
from relay.cli import output
from relay.compat import rforward, sshtunnel, zmqssh
from relay.engine.records import REASONS, ConnectionRecord, Stats
from relay.transports.ssh.config.settings import CLIENT_ONLY

CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
PROGRAMS = [
    (page, program)
    for page, text in {"README": README, **PAGES}.items()
    for program in re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
]
ELSEWHERE = {"chains": "def rows():", "tutorial": "signal.pause()"}  # what tests of their own run, and a mark of each
RUN = [one for one in PROGRAMS if one[0] not in ELSEWHERE or ELSEWHERE[one[0]] not in one[1]]
LISTENING = [one for one in RUN if "listening on" in one[1]]
OTHERS = [one for one in RUN if "listening on" not in one[1]]
COMMANDS = [
    (page, command)
    for page, text in {"README": README, **PAGES}.items()
    for command in re.findall(r"^\$ (relay (?:forward|expose|socks|pipe|up|run)\b.*?)(?: +#.*)?$", text, re.MULTILINE)
    + re.findall(r"ProxyCommand(?:='| )(relay pipe [^'\n]*)", text)
]


def page_of(example):
    return example[0]


@pytest.mark.parametrize("example", LISTENING, ids=page_of)
def test_the_programs_with_a_tunnel_run(example):
    done = subprocess.run([sys.executable, "-c", example[1]], capture_output=True, text=True, timeout=WAIT, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("listening on ('127.0.0.1', ")


@pytest.mark.parametrize("example", OTHERS, ids=page_of)
def test_the_other_programs_run(example, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", example[1]], capture_output=True, text=True, timeout=WAIT, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr  # a program may show a loss, which is in the log
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("example", COMMANDS, ids=page_of)
def test_the_commands_are_understood(example):
    command = re.sub(r"\$\(cat [^)]*\)", "ssh://me@server", example[1])
    words = shlex.split(re.split(r" \d?[<>&|]", command)[0])
    values = dict(itertools.pairwise(words))
    if words[1] == "forward":
        parse_listen(words[2])
        parse_target(words[3])
    elif words[1] == "expose":
        parse_target(words[2])
        assert listens_at_server(parse_listen(values["--on"]))
    elif words[1] == "run":
        words = words[: words.index("--")]  # its program is missing then, once the rest was understood
        for word in words[2:]:
            if "=" in word and "://" not in word:
                parse_target(word.partition("=")[2])
    parse_hops([hop for option, hop in itertools.pairwise(words) if option == "--via"])
    # The last words are too many: everything before them was understood.
    done = run(*words[1:], *(["file"] if words[1] == "up" else []), "surplus")
    assert ("PROGRAM: missing" if words[1] == "run" else "surplus: unexpected argument") in done.stderr


SAMPLES = {path.name: path.read_text() for path in sorted((ROOT / "samples").glob("*.py"))}
SHOWN = {**{f"{page} {number}": program for number, (page, program) in enumerate(PROGRAMS)}, **SAMPLES}


@pytest.mark.parametrize("program", SHOWN.values(), ids=SHOWN)
def test_no_example_ends_connections_after_a_minute(program):
    calls = [node for node in ast.walk(ast.parse(program)) if isinstance(node, ast.Call)]
    tunnels = [call for call in calls if ast.unparse(call.func) in ("relay.Tunnel", "relay.aio.Tunnel", "Tunnel")]
    for call in tunnels:
        assert "timeout=None" in ast.unparse(call)


def test_examples_of_tunnels_are_found():
    assert sum("relay.Tunnel(" in program for program in SHOWN.values()) >= 8


def test_it_shows_programs_and_commands():
    assert len(LISTENING) >= 2 and len(RUN) + len(ELSEWHERE) == len(PROGRAMS)
    assert {command.split()[1] for _, command in COMMANDS} == {"forward", "expose", "socks", "pipe", "up", "run"}


def test_every_public_name_is_in_it_and_every_name_in_it_is_public():
    packages = {path.stem for path in (ROOT / "relay").glob("[!_.]*")}
    named = set(re.findall(r"`relay\.(\w+)", ALL)) - packages - {"toml", "v1"}
    assert named <= set(relay.__all__)
    functions = {name for name in relay.__all__ if not name.endswith("Error")}
    assert functions <= named


API = set(re.findall(r"^\.\. auto(?:function|class|exception|data):: ([\w.]+)$", PAGES["api"], re.MULTILINE))


@pytest.mark.parametrize(
    "module", [relay, relay.aio, relay.testing, zmqssh, rforward, sshtunnel, types], ids=lambda module: module.__name__
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


def test_its_make_commands_are_for_users():
    assert set(re.findall(r"\bmake ([a-z]+)\b", README)) == {"demo", "zipapp"}


RUNNING = PAGES["index"].split(":caption: Running relay\n")[1].split("```")[0].split()[1:]


@pytest.mark.parametrize("page", RUNNING)
def test_a_page_for_operators_is_short(page):
    assert len(PAGES[page].split()) <= 2500


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


def test_the_pictures_are_those_that_are_drawn():
    assert script("draw_pictures").main(["--check"]) == 0, "run: python docs/draw_pictures.py"


def test_the_picture_of_the_layers_is_drawn_from_the_imports():
    script = ROOT / "docs" / "draw_layers.py"
    drawn = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=WAIT, check=True
    ).stdout
    assert drawn == (ROOT / "docs" / "layers.svg").read_text(), f"run: python {script} > docs/layers.svg"


@pytest.mark.parametrize("path", sorted((ROOT / "relay").rglob("__init__.py")), ids=lambda path: path.parent.name)
def test_every_folder_says_what_it_is(path):
    assert ast.get_docstring(ast.parse(path.read_text()))


def rows(page, heading):
    """The first cells of a page's table, by its heading."""
    (table,) = re.findall(rf"^\| {heading} \|.*\n\| ---.*\n((?:\|.*\n)+)", PAGES[page], re.MULTILINE)
    return {line.split("|")[1].strip(" `"): line.split("|")[2] for line in table.splitlines()}


def test_the_fields_of_the_log_are_those_of_the_records():
    fields = rows("logs", "field")
    record = logging.LogRecord("relay", logging.INFO, "", 0, "text", None, (OSError, OSError(), None))
    record.connection = ConnectionRecord(("127.0.0.1", 1), None, 0.0, 0, 0, "copy", "closed", "done")
    record.stats = Stats(0, 0, 0, 0, {})
    shown = json.loads(output.JSONFormatter().format(record))
    assert list(fields) == list(shown)
    for name in ("connection", "stats"):
        assert set(shown[name]) <= set(re.findall(r"`(\w+)`", fields[name]))


def test_the_systemd_unit_is_the_one_that_relay_writes():
    from relay.cli.service.unit import Sandbox, Unit, text_of

    unit = Unit(("/opt/relay/bin/relay",), "/etc/relay/relay.toml", "", "", 255, Sandbox())
    shown = re.search(r"^```ini\n(.*?)^```", PAGES["signals"], re.DOTALL | re.MULTILINE)[1]
    assert shown == text_of(unit)
    program, *words = re.search(r"^ExecStart=(.*)$", shown, re.MULTILINE)[1].split()
    assert program.endswith("/relay")
    done = run(*words, "surplus")
    assert "unexpected argument" in done.stderr


def test_every_package_is_in_the_page_about_the_architecture():
    entries = {path.stem for path in (ROOT / "relay").glob("[!_.]*") if path.name != "py.typed"}
    assert {name for name in entries if f"**`relay.{name}`**" not in PAGES["architecture"]} == set()


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The pages as a site; those of the reference take too long, and `make docs` builds these, too."""
    folder = tmp_path_factory.mktemp("site")
    build = [
        sys.executable,
        "-m",
        "sphinx",
        "--quiet",
        "--define",
        "exclude_patterns=reference/*",
        str(ROOT / "docs"),
        str(folder),
    ]
    subprocess.run(build, capture_output=True, text=True, timeout=4 * WAIT, check=True)
    return folder


def test_the_site_needs_no_network(site):
    for page in site.rglob("*.html"):
        loaded = re.findall(
            r"<(?:script|img|iframe)[^>]*\ssrc=\"([^\"]*)|<link[^>]*\shref=\"([^\"]*)", page.read_text()
        )
        assert not [name for names in loaded for name in names if name.startswith(("http:", "https:", "//", "/"))], page
    styles = "".join(path.read_text() for path in site.rglob("*.css"))
    assert not re.findall(r"@import|url\([\"']?(?:https?:)?//", styles)


def test_the_search_of_the_site_has_excerpts_without_a_server(site):
    with browser() as started, opened(started, f"{site.as_uri()}/search.html?q=backlog") as page:
        page.locator("#search-results li .context").first.wait_for()
        results = page.locator("#search-results li:not(.kind-object)")
        texts = [text.casefold() for text in results.locator(".context").all_text_contents()]
        assert len(texts) == results.count() and "backlog" in texts[0]
        results.first.locator("a").click()
        page.locator("span.highlighted").first.wait_for()
        page.keyboard.press("Escape")
        assert page.locator("span.highlighted").count() == 0
        page.reload()  # nor is the mark of a search in the next page
        page.wait_for_load_state()
        assert page.evaluate("localStorage.length && localStorage.sphinx_highlight_terms") in (0, None)
        assert page.locator("span.highlighted").count() == 0


def script(name):
    """A script of docs/, as a module."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", ROOT / "docs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def check_words():
    return script("check_words")


def test_forbidden_words_are_found_in_strings_and_comments(check_words, tmp_path):
    path = tmp_path / "program.py"
    path.write_text(
        '"""Fine."""\ntold = 1  # whoever reads\nerror = (\n    f"{port}: told a port\\n"\n    "is wanted"\n)\n'
    )
    assert [(line, text.split(";")[0]) for line, text in check_words.words(path)] == [
        (2, "'whoever'"),
        (4, "'told'"),
        (5, "'is wanted'"),
    ]


def test_strings_of_tests_are_data(check_words, tmp_path, monkeypatch):
    monkeypatch.setattr(check_words, "ROOT", tmp_path)
    for folder, lines in ("tests", [1]), ("tests/support", [1, 2]):
        path = tmp_path / folder / "test_it.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text('"""It is told."""\ntext = "told"\n')
        assert [line for line, _ in check_words.words(path)] == lines


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
    texts = re.split(r"\n\n|\n- |^```.*?^```", README, flags=re.DOTALL | re.MULTILINE)
    assert [text for text in texts if len(text.split()) > 80 and not text.startswith("|")] == []
    (first,) = re.findall(r"^```console\n\$ (.*)", README, re.MULTILINE)[:1]
    assert "relay-toolkit" in first, "the name of the distribution"


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
    for name in ("nconnect", "timeout", "connect_timeout", "idle_timeout", "linger", "first_byte_timeout"):
        default = parameters[name].default
        assert shown[name].replace("−", "-") == ("none" if default is None else f"{default:g}"), name


def test_every_reason_has_its_row():
    rows = set(re.findall(r"^\| `(\w+)` \|", PAGES["limits"], re.MULTILINE))
    assert rows == {*REASONS, "timeout", "idle_timeout", "first_byte_timeout", "nconnect", "drain", "drain_spread"}


ENTRIES = {
    title: re.compile(".*".join(map(re.escape, title.strip("… ").split("…"))), re.DOTALL | re.IGNORECASE)
    for title in re.findall(r"^### (.*)$", PAGES["troubleshooting"], re.MULTILINE)
}


def test_the_page_about_security_has_the_lower_bounds():
    rows = re.findall(r"^\| (\w+) \| ([0-9.]+) \| .*CVE-", PAGES["security"], re.MULTILINE)
    assert len(rows) == 4
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    required = [*project["dependencies"], *project["optional-dependencies"]["status"]]
    bounds = dict(one.partition(",")[0].split(">=") for one in required)
    assert {name: bounds[name] for name, _ in rows} == dict(rows)


@pytest.fixture(scope="module")
def collector():
    return script("messages")


def test_the_page_explains_the_messages_that_people_meet_and_each_is_one(collector):
    assert 30 <= len(ENTRIES) <= 40  # the index of docs/reference has all
    texts = [*collector.strings(), *(message.text for message in collector.messages())]
    shown = "\0".join(texts)  # one search of all is faster
    within = {title: entry.pattern.replace(".*", "[^\0]*") for title, entry in ENTRIES.items()}
    assert [title for title, entry in within.items() if not re.search(entry, shown, re.IGNORECASE)] == []


def test_messages_are_collected(tmp_path, monkeypatch, collector):
    (tmp_path / "relay").mkdir()
    (tmp_path / "relay" / "module.py").write_text(
        'def f(name, n):\n    logger.warning("%s: closed after %d s", name, n)\n'
        '    raise ConnectError(f"{name}: no such" + " host", reason="refused")\n'
    )
    monkeypatch.setattr(collector, "PACKAGE", tmp_path / "relay")
    assert [(kind, text) for _, kind, text in collector.messages()] == [
        ("warning", "…: closed after … s"),
        ("ConnectError", "…: no such host"),
    ]
    assert "| `…: closed after … s` | warning |\n| `…: no such host` | ConnectError |" in collector.index()


def test_the_tables_of_figures_are_those_that_were_kept():
    program = (
        "from benchmarks.__main__ import PAGE, RESULTS\n"
        "from benchmarks.report import Results, figures, page\n"
        "results = Results.load(RESULTS / 'latest.json')\n"
        "print(page(results, PAGE.read_text()), figures(results), sep='\\0', end='')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=WAIT, check=True, cwd=ROOT
    )
    assert done.stdout.split("\0") == [PAGES["performance"], PAGES["figures"]], "run: make bench ARGS=--page"
    assert PAGES["figures"].count("| relay against its goal |") >= 6


def test_each_table_of_figures_names_its_own_machine():
    program = (
        "from benchmarks.report import Results\n"
        "made = lambda where: Results.begin('2026', {'cores': where, 'kernel': 'Linux', 'python': '3'}, 3, 2)\n"
        "both = made('here').merged({'workers'}, made('there')).merged({'warm'}, made('there'))\n"
        "print(*(both.origin(table) for table in ('tcp', 'workers')), sep='; ')\n"
        "print(*(one['cores'] for one in both.machines()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=WAIT, check=True, cwd=ROOT
    )
    origins, machines = done.stdout.splitlines()
    assert origins == "; ".join(f"2026, 3 rounds of 2 s, on {where}, Linux, Python 3" for where in ("here", "there"))
    assert machines == "here there"


def test_the_rows_without_figures_are_named():
    program = (
        "from benchmarks.__main__ import RESULTS\n"
        "from benchmarks.report import Results\n"
        "from benchmarks.rows.tcp import ROWS\n"
        "print(*(set(ROWS) - set(Results.load(RESULTS / 'latest.json').data['samples'])))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=WAIT, check=True, cwd=ROOT
    )
    section = PAGES["performance"].split("\n## Rows without figures\n")[1].split("\n## ")[0]
    named = {name for row in section.splitlines() if row.startswith("| `") for name in row.split("|")[1].split(", ")}
    patterns = [name.strip(" `").replace("…", "*") for name in named]
    rows = done.stdout.split()
    assert [row for row in rows if not any(fnmatch.fnmatch(row, pattern) for pattern in patterns)] == []
    assert [pattern for pattern in patterns if not fnmatch.filter(rows, pattern)] == []


def test_every_parameter_of_a_hop_is_in_it():
    for name in set(options_of(SSHServer)) - {"password", "passphrase"}:
        assert f"`{name}" in PAGES["ssh"], name


def test_every_parameter_of_i2p_is_in_it():
    for name in {*options_of(I2PRouter), *options_of(I2PListen)} - {"password"}:
        assert f"`{name}" in PAGES["i2p"], name


def test_everything_that_forces_the_openssh_client_is_in_it():
    assert len(CLIENT_ONLY) >= 10
    for need in CLIENT_ONLY:
        word = re.search(r"sk-|@[a-z-]+|\b[A-Z]\w+", need.option)
        assert word[0] in PAGES["ssh"], need.option


def test_the_files_of_tunnels_are_right(tmp_path):
    names = []
    (tmp_path / "key").write_text("")
    for text in re.findall(r"^```toml\n(.*?)^```", ALL, re.DOTALL | re.MULTILINE):
        (tmp_path / "relay.toml").write_text(text.replace("~/.ssh/work", str(tmp_path / "key")))
        done = run("check", "--print", str(tmp_path / "relay.toml"))
        assert (done.returncode, done.stderr) == (0, "")
        names.append([*tomllib.loads(done.stdout)["tunnels"]][:3])
    assert sorted(names) == [
        ["database"],
        ["db"],
        ["db"],
        ["db"],
        ["db", "site", "proxy"],
        ["orders", "users", "stock"],
        ["web"],
        ["web", "database"],
    ]


@pytest.mark.parametrize("line", re.findall(r"^\$ relay check --print -- ([^$\n]*?)(?: +[#>].*)?$", ALL, re.MULTILINE))
def test_a_command_line_becomes_a_file(line):
    done = run("check", "--print", "--", *shlex.split(line))
    assert (done.returncode, done.stderr) == (0, "")
    assert tomllib.loads(done.stdout)["tunnels"]
