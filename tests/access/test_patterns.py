"""``relay.access.patterns``: wildcards for whole segments of names in certificates."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.access.patterns import PatternSet, check_pattern, dns_segments, matches, uri_segments

LABELS = st.sampled_from(["a", "b", "*"])
PATTERN = st.tuples(st.lists(LABELS, max_size=3), st.booleans(), st.lists(LABELS, max_size=3)).map(
    lambda parts: (*parts[0], *(["**"] if parts[1] else []), *parts[2])
)


def as_expression(pattern):
    """The same as a regular expression, over segments that each end in a dot."""
    return "".join({"*": r"[^.]+\.", "**": r"([^.]+\.)*"}.get(segment, re.escape(f"{segment}.")) for segment in pattern)


@given(PATTERN, st.lists(st.sampled_from(["a", "b"]), max_size=7))
def test_a_pattern_matches_as_its_definition_says(pattern, segments):
    expected = re.fullmatch(as_expression(pattern), "".join(f"{segment}." for segment in segments))
    assert matches(pattern, segments) == bool(expected)


@given(st.lists(PATTERN.filter(bool), max_size=6), st.lists(st.sampled_from(["a", "b"]), min_size=1, max_size=5))
@pytest.mark.parametrize("place", [0, 2])
def test_a_set_finds_one_that_matches(place, patterns, segments):
    found = PatternSet(place, ((str(pattern), pattern) for pattern in patterns)).find(segments)
    matching = [str(pattern) for pattern in patterns if matches(pattern, segments)]
    assert (found in matching) if matching else (found is None)


@given(PATTERN.filter(bool), PATTERN.filter(bool), st.lists(st.sampled_from(["a", "b"]), min_size=1, max_size=7))
def test_a_wider_pattern_matches_all_that_the_narrow_one_does(wide, narrow, segments):
    if PatternSet(0, [("wide", wide)]).find_wider(narrow) is not None and matches(narrow, segments):
        assert matches(wide, segments)


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("*.svc", ["a.svc", "A.SVC", "a.svc."], ["svc", "a.b.svc", "svc.a", "asvc", ".svc"]),
        ("**.svc", ["svc", "a.svc", "a.b.svc"], ["svc.a", "asvc"]),
        ("a.*.svc", ["a.b.svc"], ["a.svc", "b.b.svc", "a.b.c.svc"]),
        ("db.svc", ["db.svc", "DB.svc"], ["a.db.svc", "*.svc", "db"]),
        ("*", ["localhost"], ["a.b"]),
        ("**", ["localhost", "a.b"], []),
    ],
)
def test_dns_names(pattern, yes, no):
    found = PatternSet(0, [(pattern, tuple(dns_segments(pattern)))])
    assert [name for name in (*yes, *no) if found.find(dns_segments(name))] == yes


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        (
            "spiffe://example/*",
            ["spiffe://example/web", "SPIFFE://Example/web", "spiffe://example/web/"],
            ["spiffe://example", "spiffe://example/web/1", "spiffe://example.org/web", "spiffe://example//"],
        ),
        (
            "spiffe://example/**",
            ["spiffe://example", "spiffe://example/a", "spiffe://example/a/b"],
            ["spiffe://example2/a", "https://example/a"],
        ),
        ("spiffe://*/web", ["spiffe://a/web", "spiffe://b/web"], ["spiffe://a/Web", "spiffe:///web"]),
        ("spiffe:/**", ["spiffe://a/web"], ["http://a"]),
        ("urn:a", ["urn:a"], ["urn:b", "URN:a"]),
    ],
)
def test_uris(pattern, yes, no):
    found = PatternSet(2, [(pattern, tuple(uri_segments(pattern)))])
    assert [uri for uri in (*yes, *no) if found.find(uri_segments(uri))] == yes


@pytest.mark.parametrize(
    ("uri", "segments"),
    [
        ("SPIFFE://Example/Web", ["spiffe:", "", "example", "Web"]),
        ("SPIFFE://Example", ["spiffe:", "", "example"]),
        ("spiffe://example/", ["spiffe:", "", "example"]),
        ("spiffe://example/a//", ["spiffe:", "", "example", "a", ""]),
        ("spiffe://", ["spiffe:", "", ""]),
        ("URN:A", ["URN:A"]),
    ],
)
def test_segments(uri, segments):
    assert uri_segments(uri) == segments
    assert dns_segments("DB.Prod.svc.") == ["svc", "prod", "db"]


# The first label of these is the one that tells most names apart, as in a DNS name from its end.
@pytest.mark.parametrize(
    ("wide", "narrow"),
    [
        ("a.*", "a.b"),
        ("a.**", "a"),
        ("a.**", "a.*.b"),
        ("**", "a.**"),
        ("a.**", "a.b.**"),
        ("a.**", "a.**.b"),
        ("**.b", "a.**.b"),
        ("a.**.c", "a.b.**.c"),
    ],
)
def test_a_wider_pattern_is_found(wide, narrow):
    wider, other, segments = tuple(wide.split(".")), ("a", "b", "c", "d", "*"), tuple(narrow.split("."))
    found = PatternSet(0, [("other", other), ("narrow", segments), ("wide", wider)])
    assert (found.find_wider(segments), found.find_covering(wider)) == ("wide", "wide")
    assert found.find_covering(segments) == ("narrow" if "*" in narrow else "wide")
    alone = PatternSet(0, [("other", other), ("wide", wider)])
    assert alone.find_wider(wider) is None and alone.find_covering(segments) == "wide"


@pytest.mark.parametrize(
    ("pattern", "other"),
    [("a.*", "a.**"), ("a.*", "a.b.c"), ("*.**", "**"), ("a.**.*", "a.**"), ("a.b.**", "a.**"), ("**.b", "b.**")],
)
def test_a_pattern_that_is_not_wider_is_not_found(pattern, other):
    found = PatternSet(0, [(pattern, tuple(pattern.split(".")))])
    assert found.find_wider(other.split(".")) is None and found.find_covering(other.split(".")) is None


def test_a_name_covers_itself_alone():
    found = PatternSet(0, [("a.b", ("a", "b"))])
    assert found.find_covering(["a", "b"]) == "a.b"
    assert found.find_covering(["a"]) is None and found.find_wider(["a", "b"]) is None


def test_a_set_is_true_if_it_has_a_member():
    assert not PatternSet(0)
    assert PatternSet(0, [("a", ("a",))]) and PatternSet(0, [("*", ("*",))])


def test_a_name_is_compared_with_the_patterns_of_its_own_authority_alone():
    texts = [f"spiffe://domain{number}/*" for number in range(1000)]
    found = PatternSet(2, [(text, tuple(uri_segments(text))) for text in texts])
    assert [text for text, _ in found._candidates(uri_segments("spiffe://domain7/web"))] == ["spiffe://domain7/*"]


@pytest.mark.parametrize("pattern", ["*.svc", "**.svc", "a.*.**", "*.*", "db.svc"])
def test_a_pattern_that_is_allowed(pattern):
    check_pattern(dns_segments(pattern))


@pytest.mark.parametrize("pattern", ["a*.svc", "*a", "***", "**a.b"])
def test_a_wildcard_is_a_whole_segment(pattern):
    with pytest.raises(ValueError, match="whole segment; write"):
        check_pattern(dns_segments(pattern))


def test_two_of_any_number_are_rejected():
    with pytest.raises(ValueError, match="twice; once is enough"):
        check_pattern(dns_segments("**.a.**"))


def test_a_name_of_10_kb_is_matched_at_once():
    name = dns_segments(".".join("a" * 5_000))
    found = PatternSet(0, ((f"{n}", ("a", *["*"] * n, "**", "b")) for n in range(50)))
    assert found.find(name) is None
