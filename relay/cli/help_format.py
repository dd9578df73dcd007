"""How the help of every command looks."""

from __future__ import annotations

from typing import Any, NoReturn

import typer
from typer.core import TyperCommand

__all__ = ["PlainCommand", "show_help"]


class PlainCommand(TyperCommand):
    """A command whose help names its arguments as the usual manual pages do."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Name the words of the usage line; those that are needed have no braces."""
        return [piece.strip("{}") for piece in super().collect_usage_pieces(ctx)]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the two lists, without the types of arguments."""
        records: dict[str, list[tuple[str, str]]] = {"argument": [], "option": []}
        for parameter in self.get_params(ctx):
            if (record := parameter.get_help_record(ctx)) is not None:
                records[parameter.param_type_name].append(record)
        arguments = [(name.partition(" <")[0], text.removesuffix("  [required]")) for name, text in records["argument"]]
        for title, rows in (("Arguments", arguments), ("Options", records["option"])):
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)


def show_help(context: typer.Context) -> NoReturn:
    """Show the help of a command that needs another word.

    :raises typer.Exit: with status 2, as for every command line that is not complete.
    """
    print(context.get_help())
    raise typer.Exit(2)
