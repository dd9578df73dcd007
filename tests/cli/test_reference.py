"""Files that are made from the commands: the reference page, the manual pages, the completions of three shells."""

import os
import re
import shutil
import subprocess
import sys
from xml.etree import ElementTree

import pexpect
import pytest
from documents import ROOT
from helpers import WAIT

from relay.cli.app import COMMANDS, app
from relay.cli.views import _TUNNELS

DOCS = ROOT / "docs"
MANUALS = sorted((DOCS / "man").glob("*.1"))
SHELLS = ("bash", "zsh", "fish")

# What the user has typed, and what it becomes with the tab key, in a folder with a-file and a-folder.
COMPLETED = {
    "relay forw": "relay forward",
    "relay forward --log-fo": "relay forward --log-format",
    "relay forward :0 db:1 --fail": "relay forward :0 db:1 --fail-fast",
    "relay expose --on i2p --tran": "relay expose --on i2p --transient",
    "relay up --log-format j": "relay up --log-format json",
    "relay up --log-format=j": "relay up --log-format=json",
    "relay help exit": "relay help exit-status",
    "relay keys sh": "relay keys show",
    "relay keys new a-fi": "relay keys new a-file",
    "relay up a-fi": "relay up a-file",
    "relay check a-fi": "relay check a-file",
    "relay demo a-fo": "relay demo a-folder",
    "relay socks 1080 --password-file a-fi": "relay socks 1080 --password-file a-file",
    "relay expose --keys a-fi": "relay expose --keys a-file",
}
UNTOUCHED = ("relay forward a-fi", "relay pipe --via a-fi")  # no file can be there


def test_all_of_it_is_made_from_the_commands(tmp_path):
    script = DOCS / "write_cli.py"
    subprocess.run([sys.executable, str(script), str(tmp_path)], timeout=WAIT, check=True)
    made = {path.relative_to(tmp_path): path.read_text() for path in tmp_path.rglob("*") if path.is_file()}
    kept = {path.relative_to(DOCS) for folder in ("man", "completions") for path in (DOCS / folder).iterdir()}
    assert {path for path in made if path.parts[0] != "reference"} == kept
    for path, text in made.items():
        assert text == (DOCS / path).read_text(), f"{path}: run python {script}"


def options():
    """Every option of every command, by the command's words."""
    context = app.make_context("relay", [], resilient_parsing=True)
    for name in COMMANDS:
        command = app.get_command(context, name)
        below = getattr(command, "commands", {})
        for words, one in [([name], command), *(([name, word], each) for word, each in below.items())]:
            shown = [parameter for parameter in one.params if not getattr(parameter, "hidden", False)]
            names = [option for parameter in shown for option in parameter.opts if option.startswith("--")]
            yield words, [*names, "--help"]


def test_every_option_is_in_the_page_and_in_its_manual():
    page = (DOCS / "reference" / "cli.md").read_text()
    for words, names in options():
        manual = (DOCS / "man" / f"relay-{words[0]}.1").read_text().replace("\\", "")
        _, heading, rest = page.partition(f"# relay {' '.join(words)}\n")
        assert heading
        for name in names:
            assert f"`{name}`" in rest.partition("\n#")[0], (words, name)
            assert name in manual, (words, name)


@pytest.mark.parametrize("page", MANUALS, ids=lambda path: path.stem)
def test_the_manual_renders_without_a_warning(page):
    if shutil.which("man") is None or shutil.which("groff") is None:
        pytest.skip("man or groff is not installed")
    done = subprocess.run(
        ["man", "--warnings", "--encoding=UTF-8", "--local-file", str(page)],
        env={**os.environ, "LC_ALL": "C.UTF-8", "MANWIDTH": "80", "MAN_KEEP_FORMATTING": "", "MANROFFSEQ": ""},
        capture_output=True, text=True, timeout=WAIT, check=True,
    )  # fmt: skip
    assert done.stderr == ""
    assert "NAME" in done.stdout and "SYNOPSIS" in done.stdout and "relay" in done.stdout


def test_the_recorded_terminal_shows_the_table_of_today_and_loads_no_other_file():
    picture = (DOCS / "terminal.svg").read_text()
    lines = [
        "".join(text.itertext()) for text in ElementTree.fromstring(picture).iter("{http://www.w3.org/2000/svg}text")
    ]
    titles = " ".join(column.title for column in _TUNNELS).split()
    assert titles in [line.split() for line in lines], "run docs/record_terminal.py"
    assert re.findall(r"https?:|url\(|href", picture) == ["http:"], "only the name space"


@pytest.fixture(params=SHELLS)
def complete(request, tmp_path):
    """Type lines, each with the tab key, in a shell; returns what it makes of each."""
    if shutil.which(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    (tmp_path / "a-file").touch()
    (tmp_path / "a-folder").mkdir()
    way = {"bash": complete_by_bash, "zsh": complete_by_zsh, "fish": complete_by_fish}[request.param]
    return lambda lines: {line: made.rstrip("=/") for line, made in way(lines, tmp_path).items()}


def complete_by_bash(lines, folder):
    setup = f"bind 'set enable-bracketed-paste off'; source {DOCS}/completions/relay"
    return typed(["bash", "--norc", "--noprofile", "-i"], setup, lines, folder)


def complete_by_zsh(lines, folder):
    setup = f"fpath=({DOCS}/completions $fpath); autoload -U compinit; compinit -u -D"
    return typed(["zsh", "-f", "-i"], setup, lines, folder)


def typed(shell, setup, lines, folder):
    """In a terminal, where a function stands in for relay and says with which words it was called."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "TERM": "dumb", "PS1": "$ ", "LC_ALL": "C.UTF-8"}
    made = {}
    with pexpect.spawn(
        shell[0], shell[1:], env=environment, cwd=str(folder), encoding="utf-8", timeout=WAIT, echo=False
    ) as terminal:
        terminal.sendline(f'{setup}; relay() {{ echo got: "$@" :end; }}; echo re""ady')
        terminal.expect("ready\r")
        for line in lines:
            terminal.sendline(f"{line}\t")
            terminal.expect(r"got: (.*?) :end\r")
            made[line] = f"relay {terminal.match[1]}"
    return made


def complete_by_fish(lines, folder):
    code = f"source {DOCS}/completions/relay.fish; for line in $argv; complete -C $line; echo :end; end"
    done = subprocess.run(
        ["fish", "--no-config", "-c", code, *lines],
        cwd=folder, env={**os.environ, "HOME": str(folder)}, capture_output=True, text=True, timeout=WAIT, check=True,
    )  # fmt: skip
    made = {}
    for line, answer in zip(lines, done.stdout.split(":end\n"), strict=False):
        words = [each.partition("\t")[0] for each in answer.splitlines()]
        made[line] = f"{line.rpartition(' ')[0]} {words[0]}" if len(words) == 1 else line
    return made


def test_a_shell_completes_words_options_and_files(complete):
    assert complete([*COMPLETED]) == COMPLETED


def test_no_shell_offers_files_where_none_can_be(complete):
    assert complete(UNTOUCHED) == {line: line for line in UNTOUCHED}


def test_every_option_is_completed(complete):
    typed = [(f"relay {' '.join(words)}", name) for words, names in options() for name in names]
    # Without its last letter --sam could be --sandbox, --tag --target, and the others could be longer names.
    lines = {
        f"{command} {name[:-1]}": f"{command} {name}"
        for command, name in typed
        if name not in ("--sam", "--tag", "--warm", "--drain")
    }
    assert complete([*lines]) == lines
