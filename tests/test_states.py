"""A class with many attributes has a table of states, or is plain data, and says which."""

import ast
import re
from pathlib import Path

import pytest

import relay

PACKAGE = Path(relay.__file__).parent
MOST, BOOLEANS = 12, 4  # attributes of a class that need no word about states
SAYS = re.compile(r"={6}|plain data|states? (?:of|is|are|in) .*:mod:|states are in", re.IGNORECASE | re.DOTALL)

# Those that do not say it yet. This list only shrinks.
SILENT = {
    "engine/acceptor.py:SocketAcceptor",
    "engine/flow.py:Flow",
    "testing/sam/router.py:Router",
    "transports/ssh/paramiko/mux.py:Mux",
    "transports/ssh/paramiko/packets.py:Packetizer",
    "transports/ssh/paramiko/wire.py:Wire",
}


def attributes(owner):
    """Return the attributes of a class that its body or its ``__init__`` names, and those of them that are booleans."""
    names, booleans = set(), set()
    is_dataclass = any("dataclass" in ast.unparse(one) for one in owner.decorator_list)
    for part in owner.body:
        if isinstance(part, ast.AnnAssign) and is_dataclass and "ClassVar" not in ast.unparse(part.annotation):
            names.add(part.target.id)
            if ast.unparse(part.annotation) == "bool":
                booleans.add(part.target.id)
        elif isinstance(part, ast.Assign) and ast.unparse(part.targets[0]) == "__slots__":
            names |= {name for name in ast.literal_eval(part.value) if not name.startswith("__")}
        elif isinstance(part, ast.FunctionDef) and part.name == "__init__":
            kinds = {
                one.arg: one.annotation and ast.unparse(one.annotation)
                for one in ast.walk(part.args)
                if isinstance(one, ast.arg)
            }
            for line in ast.walk(part):
                for target in _targets(line):
                    names.add(target)
                    value = line.value
                    is_flag = isinstance(value, ast.Constant) and isinstance(value.value, bool)
                    if is_flag or (isinstance(value, ast.Name) and kinds.get(value.id) == "bool"):
                        booleans.add(target)
    return names, booleans


def _targets(line):
    """Yield the names of the attributes of ``self`` that a line assigns."""
    targets = line.targets if isinstance(line, ast.Assign) else [line.target] if isinstance(line, ast.AnnAssign) else []
    for target in targets:
        for one in target.elts if isinstance(target, ast.Tuple) else [target]:
            if isinstance(one, ast.Attribute) and ast.unparse(one.value) == "self":
                yield one.attr


def large_classes():
    """Return the classes with many attributes, and whether their docstrings say why."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        module = ast.parse(path.read_text())
        for owner in ast.walk(module):
            if isinstance(owner, ast.ClassDef):
                names, booleans = attributes(owner)
                if len(names) > MOST or len(booleans) > BOOLEANS:
                    words = f"{ast.get_docstring(module)}\n\n{ast.get_docstring(owner)}"
                    found[f"{path.relative_to(PACKAGE)}:{owner.name}"] = SAYS.search(words) is not None
    return found


def test_a_class_with_many_attributes_has_a_table_of_states_or_is_plain_data():
    assert {name for name, says in large_classes().items() if not says} <= SILENT


@pytest.mark.parametrize(
    ("text", "names", "booleans"),
    [
        ("class A:\n    __slots__ = ('a', 'b')", {"a", "b"}, set()),
        ("@dataclass\nclass A:\n    a: bool\n    b: int = 0", {"a", "b"}, {"a"}),
        (
            "class A:\n    def __init__(self, a: bool):\n        self.a = a\n        self.b, self.c = 1, 2",
            {"a", "b", "c"},
            {"a"},
        ),
        ("class A:\n    def __init__(self):\n        self.a: bool = False", {"a"}, {"a"}),
    ],
)
def test_what_counts(text, names, booleans):
    assert attributes(ast.parse(text).body[0]) == (names, booleans)
