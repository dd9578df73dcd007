"""The lines of a TOML file: the scan finds what ``tomllib`` finds, and on the right line."""

import string
import tomllib

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from relay.config.lines import lines_of


def paths_of(value, path=()):
    """The path of everything that tomllib has read."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield (*path, key)
            yield from paths_of(inner, (*path, key))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield (*path, number)
            yield from paths_of(inner, (*path, number))


NASTY = '''\
# a comment = "x"
title = "a # b = [c]" # [not.a.table]
dotted.keys . "in \\" quotes".'and literal' = 1
escaped."\\u0041\\t" = 2
basic = """one
[two]
three = "3" and ""two quotes"" \\
   \\""" four"""
five = """a"""""
literal = \'\'\'
[nothing]
'a' ''b''\'\'\'
windows = "C:\\\\"
when = 1979-05-27 07:32:00 # a space in a value
empty = []
nested = [ # comment ]
  [1, 2,], # trailing [
  # a = 1
  [ "]", \'[\' ],
  { x = 1, y.z = [ { } ] },
]
inline = { a = "}", "b c" = \'{\', d = { e = [1, {f = 2}] } }

[ table . "with dots.inside" ]
key=1 # comment
other   =   true
[table.sub]
[[array]]
name = "first"
[[array.inner]]
deep = 1
[array.inner.more]
x = 1
[[array.inner]]
[[array]]
name = "second"
[array.table]
y = 2
[[array.inner]]
z = """
"""
[last]
inf = -inf
n = +1_000'''


@pytest.mark.parametrize("text", [NASTY, NASTY.replace("\n", "\r\n"), "", "\n\n", "# only", "a = 1", "[a]"])
def test_every_path_is_found_and_no_other(text):
    assert set(lines_of(text)) == set(paths_of(tomllib.loads(text)))


@pytest.mark.parametrize("text", [NASTY, NASTY.replace("\n", "\r\n")])
@pytest.mark.parametrize(
    ("path", "words"),
    [
        (("title",), "title ="),
        (("dotted", "keys", 'in " quotes', "and literal"), "dotted."),
        (("escaped", "A\t"), "escaped."),
        (("basic",), "basic ="),
        (("five",), "five ="),
        (("literal",), "literal ="),
        (("windows",), "windows ="),
        (("nested", 1), '[ "]"'),
        (("nested", 2, "y", "z", 0), "{ x = 1"),
        (("inline", "d", "e", 1, "f"), "inline ="),
        (("table", "with dots.inside", "other"), "other  "),
        (("array", 0), "[[array]]"),
        (("array", 0, "inner", 0, "more"), "[array.inner.more]"),
        (("array", 1, "name"), 'name = "second"'),
        (("array", 1, "inner", 0, "z"), 'z = """'),
        (("last", "n"), "n = +1"),
    ],
)
def test_the_line_is_the_one_where_it_is_written(text, path, words):
    assert (
        text.splitlines()[lines_of(text)[path] - 1].startswith(words)
        or words in (text.splitlines()[lines_of(text)[path] - 1])
    )


def test_what_is_written_twice_has_its_first_line():
    lines = lines_of("[a.b]\nx = 1\n[a]\ny = 2\n[[c]]\n[[c]]\n")
    assert lines[("a",)] == 1
    assert lines[("c",)] == 5
    assert (lines[("c", 0)], lines[("c", 1)]) == (5, 6)


keys = st.text(string.ascii_letters + string.digits + "-_ .\"'#=[]{}\\\n€", min_size=0, max_size=6)
scalars = st.one_of(
    st.integers(-9, 9), st.booleans(), st.floats(allow_nan=False), st.text("ab\"'#=[]{}\\,\n\t€", max_size=8)
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3), max_leaves=12
)


@given(st.dictionaries(keys, values, max_size=5), st.booleans())
def test_whatever_is_written_is_found(document, multiline):
    text = tomli_w.dumps(document, multiline_strings=multiline)
    assert set(lines_of(text)) == set(paths_of(tomllib.loads(text)))
