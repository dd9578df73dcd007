"""Draw the layers of the package from its imports: ``python docs/draw_layers.py > docs/layers.svg``.

A line leads from a layer to one that it imports, annotations included; what follows from other lines is left out.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from xml.sax.saxutils import escape

from draw_pictures import STYLE

PACKAGE = Path(__file__).parents[1] / "relay"
WIDTH, HEIGHT, GAP_X, GAP_Y = 132, 44, 22, 40  # pixels
PUBLIC = {"aio", "cli", "compat", "testing", "types", "api", "errors"}  # what users import or run


def parts() -> dict[str, list[Path]]:
    """The folders and modules directly under the package, with their files."""
    found: dict[str, list[Path]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if not name.startswith("__"):
            found.setdefault(name, []).append(path)
    return found


def imported(path: Path) -> Iterator[str]:
    """The parts of the package that a file imports."""
    package = ["relay", *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = [*package[: len(package) - node.level + 1], *(node.module or "").split(".")]
            names = [base[1]] if len(base) > 1 and base[1] else [alias.name for alias in node.names]
            yield from names


def arrows(found: Mapping[str, list[Path]]) -> dict[str, set[str]]:
    """Which part imports which, without what follows from other imports."""
    direct = {
        name: {other for path in paths for other in imported(path)} & found.keys() - {name}
        for name, paths in found.items()
    }
    reached: dict[str, set[str]] = {}

    def reach(name: str) -> set[str]:
        if name not in reached:
            reached[name] = direct[name].union(*map(reach, direct[name]))
        return reached[name]

    return {name: others - set().union(*map(reach, others)) for name, others in direct.items()}


def rows(lines: Mapping[str, set[str]]) -> list[list[str]]:
    """The parts by their height: each stands above all that it imports."""
    height: dict[str, int] = {}

    def high(name: str) -> int:
        if name not in height:
            height[name] = 1 + max(map(high, lines[name]), default=-1)
        return height[name]

    top = max(map(high, lines))
    return [sorted(name for name in lines if height[name] == level) for level in range(top, -1, -1)]


def draw() -> str:
    """The picture, as SVG."""
    found = parts()
    lines = arrows(found)
    levels = rows(lines)
    wide = max(map(len, levels)) * (WIDTH + GAP_X) + GAP_X
    tall = len(levels) * (HEIGHT + GAP_Y) + GAP_Y
    places = {}
    for row, level in enumerate(levels):
        left = (wide - len(level) * (WIDTH + GAP_X) + GAP_X) / 2
        for column, name in enumerate(level):
            places[name] = left + column * (WIDTH + GAP_X), GAP_Y + row * (HEIGHT + GAP_Y)
    size = f'viewBox="0 0 {wide} {tall}" width="{wide}" height="{tall}"'
    drawn = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size}>',
        STYLE,
        f'<rect class="page" width="{wide}" height="{tall}"/>',
    ]
    for name, others in sorted(lines.items()):
        for other in sorted(others):
            (x, y), (to_x, to_y) = places[name], places[other]
            drawn.append(
                f'<path d="M{x + WIDTH / 2:g} {y + HEIGHT} C{x + WIDTH / 2:g} {y + HEIGHT + GAP_Y:g} '
                f'{to_x + WIDTH / 2:g} {to_y - GAP_Y:g} {to_x + WIDTH / 2:g} {to_y}" class="line"/>'
            )
    for name, (x, y) in sorted(places.items()):
        kind = "relay" if name in PUBLIC else "box"
        drawn += [
            f'<rect x="{x:g}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="6" class="{kind}"/>',
            f'<text x="{x + WIDTH / 2:g}" y="{y + 27}" text-anchor="middle">{escape(name)}</text>',
        ]
    return "\n".join([*drawn, "</svg>"]) + "\n"


if __name__ == "__main__":
    sys.stdout.write(draw())
