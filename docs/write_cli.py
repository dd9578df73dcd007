"""Write what is made from the commands: ``python docs/write_cli.py``; ``tests/cli/test_reference.py`` compares it.

These are the reference page (``reference/cli.md``), the manual pages (``man/``) and the completions of shells
(``completions/``). The wheel installs the last two as they are, so that building one needs nothing but setuptools.

The completions are static: Click's own start relay at each press of the tab key. Only the name of a running tunnel asks
``relay ctl list --names``.
"""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click

from relay.cli.app import app
from relay.cli.commands.help import TOPICS
from relay.cli.options import SECONDS, UNITS

HERE = Path(__file__).parent
MADE = "made by docs/write_cli.py"
FILES = (
    ("./relay.toml", "The tunnels of relay up and relay check, where no file is given."),
    ("~/.config/relay/relay.toml", "The same where the folder has none."),
    ("~/.ssh/config, ~/.ssh/known_hosts", "The SSH configuration and the host keys, as OpenSSH uses them."),
)


class Parameter(NamedTuple):
    """An argument or an option: its names, its value as help shows it (empty for a flag), its help."""

    names: Sequence[str]
    value: str
    help: str
    is_repeatable: bool

    @property
    def shown(self) -> str:
        """The names and the value, as help shows them."""
        return ", ".join(self.names) + (f" {self.value}" if self.value and self.names else self.value)

    @property
    def choices(self) -> Sequence[str]:
        """The words that are allowed, if only these are."""
        if self.value == "COMMAND | TOPIC":
            return [command.name for command in COMMANDS.commands] + list(TOPICS)
        return self.value[1:-1].split("|") if self.value.startswith("[") and "|" in self.value else ()


class Example(NamedTuple):
    """A command line, and what is said of it."""

    line: str
    comment: str


@dataclasses.dataclass(frozen=True)
class Command:
    """A command: its words (``relay keys new``), how it is used, and what is below it."""

    words: Sequence[str]
    usage: str
    text: Sequence[str]
    arguments: Sequence[Parameter]
    options: Sequence[Parameter]
    epilog: str
    commands: Sequence[Command]

    @property
    def name(self) -> str:
        """Its last word."""
        return self.words[-1]

    @property
    def all(self) -> Iterator[Command]:
        """It and those below it."""
        yield self
        for command in self.commands:
            yield from command.all

    @property
    def shown(self) -> Iterator[str | Example | list[str]]:
        """The text below the options: sentences, examples, and the lines of a file."""
        file: list[str] = []
        for paragraph in self.epilog.strip().split("\n\n"):
            if paragraph.startswith("\b\n"):
                file += [*([""] if file else []), *paragraph.splitlines()[1:]]
                continue
            if file:
                yield file
            file = []
            if found := re.fullmatch(r"(.*?) \(([^()]*(?:\([^()]*\)[^()]*)*)\)", paragraph):
                yield Example(found[1], found[2])
            elif paragraph.endswith((".", ":")) or not paragraph:
                yield paragraph.replace("\n", " ")
            else:
                yield Example(paragraph, "")


def parameter(made: Any, context: Any) -> Parameter:
    """What Click has of a parameter."""
    names, text = made.get_help_record(context)
    text = re.sub(r" *\[required\]$", "", text).replace("  [", " [")
    if made.param_type_name == "argument":
        return Parameter((), made.metavar.strip("[]"), text, made.nargs < 0)
    value = re.sub(r"-[\w-]+,? ?", "", names, count=len(made.opts))
    return Parameter(sorted(made.opts, key=len), value, text, made.multiple)


def read(made: Any, words: Sequence[str], parent: Any = None) -> Command:
    """What Click has of a command."""
    context = click.Context(made, info_name=words[-1], parent=parent, **made.context_settings)
    records = [(one, parameter(one, context)) for one in made.get_params(context) if not getattr(one, "hidden", False)]
    names = made.list_commands(context) if hasattr(made, "list_commands") else []
    return Command(
        words,
        " ".join([*words, *made.collect_usage_pieces(context)]),
        [" ".join(paragraph.split()) for paragraph in (made.help or "").split("\n\n")],
        [record for one, record in records if one.param_type_name == "argument"],
        [record for one, record in records if one.param_type_name == "option"],
        made.epilog or "",
        [read(made.get_command(context, name), [*words, name], context) for name in names],
    )


COMMANDS = read(app, ["relay"])


# -- Markdown ---------------------------------------------------------------------------------------------------------


def markdown() -> str:
    """The reference page."""
    parts = [f"<!-- {MADE} -->", "# The command", plain(COMMANDS.text[0])]
    parts += ["The manual pages say the same: `man relay`, `man relay-forward` and so on."]
    for command in COMMANDS.all:
        if command is not COMMANDS:
            parts.append(
                f"## {' '.join(command.words)}" if len(command.words) < 3 else f"### {' '.join(command.words)}"
            )
        parts += [f"```text\n{command.usage}\n```"]
        parts += [] if command is COMMANDS else map(plain, command.text)
        for title, rows in (("argument", command.arguments), ("option", command.options)):
            if rows:
                parts.append("\n".join([f"| {title} | meaning |", "| --- | --- |", *map(row, rows)]))
                parts += [UNITS] if any(each.value == SECONDS for each in rows) else []
        parts += [] if command is COMMANDS else map(shown, command.shown)
    for topic, text in TOPICS.items():
        parts.append(f"## relay help {topic}\n\n```text\n{text.rstrip()}\n```")
    return "\n\n".join(filter(None, parts)) + "\n"


def row(one: Parameter) -> str:
    """A line of a table."""
    names = ", ".join(f"`{name}`" for name in one.names)
    value = f"`{one.value}`".replace("|", "\\|") if one.value else ""
    return f"| {' '.join(filter(None, (names, value)))} | {plain(one.help)} |"


def plain(text: str) -> str:
    """Text in which nothing is markup but the options, which are code."""
    pieces = re.split(r"((?<![\w-])--[a-z][a-z-]*)", re.sub(r"([\\*<>_\[\]|])", r"\\\1", text))
    return "".join(f"`{piece}`" if number % 2 else piece for number, piece in enumerate(pieces))


def shown(piece: str | Example | list[str]) -> str:
    """A piece of the text below the options, in Markdown."""
    if isinstance(piece, list):
        return "\n".join(["```text", *piece, "```"])
    if isinstance(piece, Example):
        return f"- `{piece.line}`" + (f": {plain(piece.comment)}" if piece.comment else "")
    return plain(piece)


# -- manual pages -----------------------------------------------------------------------------------------------------


def manual(command: Command) -> str:
    """The manual page of a command."""
    name = "-".join(command.words)
    parts = [f'.\\" {MADE}', f'.TH {name.upper()} 1 "" relay "relay manual"']
    parts += [".SH NAME", roff(f"{name} - {command.text[0].partition('. ')[0].rstrip('.')}".replace(" - ", " \\- ", 1))]
    parts += [
        ".SH SYNOPSIS",
        *(f"{bold(one.usage)}\n.br" for one in command.all if one is command or command.name != "relay"),
    ]
    parts += [".SH DESCRIPTION", *(f".PP\n{roff(text)}" for text in command.text)]
    if command.name == "relay":
        parts += [".SH COMMANDS"]
        parts += [f".TP\n.BR {'-'.join(one.words)} (1)\n{roff(one.text[0])}" for one in command.commands]
    for one in command.all if command.name != "relay" else [command]:
        of = "" if one is command else f" OF {' '.join(one.words).upper()}"
        parts += (
            []
            if one is command
            else [f".SH {' '.join(one.words).upper()}", *(f".PP\n{roff(text)}" for text in one.text)]
        )
        for title, rows in (("ARGUMENTS", one.arguments), ("OPTIONS", one.options)):
            parts += [f".SH {title}{of}"] if rows else []
            parts += [f".TP\n{bold(each.shown)}\n{roff(each.help)}" for each in rows]
            parts += [f".PP\n{roff(UNITS)}"] if any(each.value == SECONDS for each in rows) else []
    if command.name == "relay":
        for topic, text in TOPICS.items():
            parts += [f".SH {topic.upper().replace('-', ' ')}", verbatim(text.rstrip().splitlines())]
        parts += [".SH FILES", *(f".TP\n{bold(file)}\n{roff(text)}" for file, text in FILES)]
        others = [f".BR {'-'.join(one.words)} (1)" for one in command.commands]
    else:
        parts += [".SH EXAMPLES", *map(roff_of, command.shown)] if command.epilog else []
        others = [".BR relay (1)"]
    return "\n".join([*parts, ".SH SEE ALSO", ",\n".join(others)]) + "\n"


def roff(text: str) -> str:
    """Text in which nothing is a request or an escape."""
    text = text.replace(" \\- ", "\0").replace("\\", "\\e").replace("-", "\\-").replace("\0", " \\- ")
    text = text.replace("~", "\\(ti").replace("^", "\\(ha").replace("'", "\\(aq").replace("`", "\\(ga")
    return re.sub(r"^(?=[.'])", r"\\&", text)


def bold(text: str) -> str:
    """Text as it is typed."""
    return f"\\fB{roff(text)}\\fR"


def verbatim(lines: Sequence[str]) -> str:
    """Lines that stay as they are."""
    return "\n".join([".nf", *map(roff, lines), ".fi"])


def roff_of(piece: str | Example | list[str]) -> str:
    """A piece of the text below the options, in roff."""
    if isinstance(piece, list):
        return f".PP\n.RS 4\n{verbatim(piece)}\n.RE"
    if isinstance(piece, Example):
        return f".TP\n.EX\n{roff(piece.line)}\n.EE\n{roff(piece.comment)}"
    return "" if piece == "Examples:" else f".PP\n{roff(piece)}"


# -- completions ------------------------------------------------------------------------------------------------------


TUNNELS = "command relay ctl list --names 2>/dev/null"  # of the running relays


def values(one: Parameter) -> str:
    """What a value may be: ``files``, ``folders``, ``tunnels``, ``words``, or empty for text."""
    kinds = {"FILE": "files", "PATH": "files", "DIRECTORY": "folders", "TUNNEL": "tunnels"}
    return "words" if one.choices else kinds.get(one.value.partition(" ")[0], "")


def names(commands: Sequence[Command]) -> str:
    """Their names, as a list of the shell."""
    return " ".join(command.name for command in commands)


def bash() -> str:
    """The completion of bash."""
    begin = {
        "files": "compopt -o default ",
        "folders": "compopt -o dirnames ",
        "tunnels": f'words="$({TUNNELS})" ',
        "": "",
    }

    def action(one: Parameter) -> str:
        return f'words="{" ".join(one.choices)}" ' if one.choices else begin[values(one)]

    commands = [f'" {command.name}"' for command in COMMANDS.commands]
    below = [f'"{command.name} {one.name}"' for command in COMMANDS.commands for one in command.commands]
    lines = []
    for command in reversed([*COMMANDS.all]):  # the longer names first
        path = " ".join(command.words[1:])
        actions: dict[str, list[str]] = {}
        for one in command.options:
            if one.value:
                actions.setdefault(action(one), []).extend(f'"{path} {name}"' for name in one.names)
        lines += [f"        {'|'.join(patterns)}) {what};;" for what, patterns in actions.items()]
        flags = " ".join(name for one in command.options for name in one.names)
        other = (
            f'words="{names(command.commands)}"' if command.commands else "".join(map(action, command.arguments[:1]))
        )
        lines.append(
            f'        "{path} "*) if [[ $current == -* ]]; then words="{flags}"; else {other.strip() or ":"}; fi ;;'
        )
    return f"""# Completion of relay for bash, {MADE}.

_relay() {{
    local command="" current=${{COMP_WORDS[COMP_CWORD]}} previous=${{COMP_WORDS[COMP_CWORD - 1]}} word words=""
    for word in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
        case "$command $word" in
            {"|".join(commands)}) command=$word ;;
            {"|".join(below)}) command+=" $word" ;;
            "check forward"|"check expose"|"check socks") command=$word ;;
        esac
    done
    # "=" is a word of its own.
    [[ $current == "=" ]] && current="" previous="="
    [[ $previous == "=" ]] && previous=${{COMP_WORDS[COMP_CWORD - 1]}} && [[ $previous == "=" ]] \\
        && previous=${{COMP_WORDS[COMP_CWORD - 2]}}
    case "$command $previous" in
{chr(10).join(lines)}
    esac
    COMPREPLY=($(compgen -W "$words" -- "$current"))
}}

complete -F _relay relay
"""


def quoted(text: str) -> str:
    """Text as one word of zsh or fish, which differ in what a backslash means: nothing has one here but a quote."""
    return "'" + text.replace("'", "'\\''") + "'"


def zsh() -> str:
    """The completion of zsh."""

    def action(one: Parameter) -> str:
        message = re.sub(r"([\\:])", r"\\\1", one.value)
        what = {
            "files": "_files",
            "folders": "_files -/",
            "tunnels": f"(${{(f)$({TUNNELS})}})",
            "words": f"({' '.join(one.choices)})",
            "": "()",
        }
        return f":{message}:{what[values(one)]}" if one.value else ""

    def option(one: Parameter) -> Iterator[str]:
        text = re.sub(r"([\\\[\]])", r"\\\1", one.help)
        for name in one.names:
            several = "*" if one.is_repeatable else f"({' '.join(one.names)})"
            yield f"{several}{name}{'=' if one.value and name.startswith('--') else ''}[{text}]{action(one)}"

    def arguments(command: Command) -> Iterator[str]:
        yield "-s"
        for one in command.options:
            yield from map(quoted, option(one))
        for number, one in enumerate(command.arguments, 1):
            yield quoted(f"{'*' if one.is_repeatable else number}{action(one)}")

    def indented(words: Iterator[str]) -> str:
        return " \\\n                ".join(words)

    def case(command: Command) -> Iterator[str]:
        yield f"        {command.name})"
        if command.commands:
            own = " ".join(quoted(word) for one in command.options for word in option(one))
            one_of = quoted(f"1:command:({names(command.commands)})")
            yield f"            _arguments -C {own} {one_of} '*::argument:->below' && return"
            yield "            case $line[1] in"
            for one in command.commands:
                yield f"            {one.name})\n                _arguments {indented(arguments(one))} ;;"
            yield "            esac ;;"
        else:
            yield f"            _arguments {indented(arguments(command))} ;;"

    cases = "\n".join(line for command in COMMANDS.commands for line in case(command))
    described = "\n".join(f"        {quoted(f'{one.name}:{one.text[0]}')}" for one in COMMANDS.commands)
    own = " ".join(quoted(word) for one in COMMANDS.options for word in option(one))
    return f"""#compdef relay
# Completion of relay for zsh, {MADE}.

_relay() {{
    local -a commands line state
    commands=(
{described}
    )
    _arguments -C {own} '1:command:->command' '*::argument:->argument' && return
    [[ $state == command ]] && _describe command commands && return
    case $line[1] in
{cases}
    esac
}}

if [[ $funcstack[1] == _relay ]]; then
    _relay "$@"
else
    compdef _relay relay
fi
"""


def fish() -> str:
    """The completion of fish."""
    text = [f"# Completion of relay for fish, {MADE}.", "complete -c relay -f"]
    files = {
        "files": " -F",
        "folders": " -a '(__fish_complete_directories)'",
        "tunnels": f" -a '({TUNNELS})'",
        "": "",
    }

    def action(one: Parameter) -> str:
        return f" -a {quoted(' '.join(one.choices))}" if one.choices else files[values(one)]

    for command in COMMANDS.all:
        seen = [f"__fish_seen_subcommand_from {word}" for word in command.words[1:]]
        condition = "; and ".join(seen) or "__fish_use_subcommand"
        begin = f"complete -c relay -n {quoted(condition)}"
        for one in command.options:
            flags = "".join(f" -l {name[2:]}" if name.startswith("--") else f" -s {name[1:]}" for name in one.names)
            needs = (" -r" if values(one) == "files" else " -x") if one.value else ""
            text.append(f"{begin}{flags}{needs}{action(one) if one.value else ''} -d {quoted(one.help)}")
        if command.commands:
            unseen = "; ".join([condition, f"and not __fish_seen_subcommand_from {names(command.commands)}"])
            begin = f"complete -c relay -n {quoted(unseen)}"
        text += [f"{begin} -a {one.name} -d {quoted(one.text[0])}" for one in command.commands]
        text += [f"{begin}{action(one)}" for one in command.arguments[:1] if action(one)]
    return "\n".join(text) + "\n"


def documents() -> dict[str, str]:
    """Every file that is made, by its name in docs/."""
    manuals = {f"man/{'-'.join(one.words)}.1": manual(one) for one in (COMMANDS, *COMMANDS.commands)}
    shells = {"completions/relay": bash(), "completions/_relay": zsh(), "completions/relay.fish": fish()}
    return {"reference/cli.md": markdown(), **manuals, **shells}


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE
    for name, text in documents().items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
