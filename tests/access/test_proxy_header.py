from __future__ import annotations

import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.access.proxy_header import (
    ALPN,
    AUTHORITY,
    CRC32C,
    DESTINATION,
    LONGEST_V1,
    NOOP,
    SSL,
    UNIQUE_ID,
    Address,
    HeaderReader,
    ProxyHeader,
    ProxyHeaderError,
    SSLEntry,
    build_local,
    build_v1,
    build_v2,
    checksum,
)

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
ONE, OTHER = Address("192.0.2.7", 56324), Address("198.51.100.1", 443)
ONE_6, OTHER_6 = Address("2001:db8::7", 1), Address("2001:db8::8", 65535)


def read(data: bytes, step: int = 1 << 20) -> tuple[ProxyHeader | None, int]:
    """Read a header as from a socket that brings so many bytes at a time; return it, and how many bytes it took."""
    reader, at = HeaderReader(), 0
    while reader.header is None and at < len(data):
        taken = reader.feed(data[at : at + step])
        assert 0 < taken <= step
        at += taken
    return reader.header, at


def v2(command: int, family: int, body: bytes) -> bytes:
    return SIGNATURE + struct.pack("!BBH", command, family, len(body)) + body


TCP4 = bytes([1, 2, 3, 4, 5, 6, 7, 8]) + struct.pack("!HH", 9, 10)


def entry(kind: int, value: bytes) -> bytes:
    return struct.pack("!BH", kind, len(value)) + value


def with_checksum(command: int, family: int, body: bytes) -> bytes:
    header = v2(command, family, body + entry(CRC32C, bytes(4)))
    return header[:-4] + checksum(header).to_bytes(4, "big")


class TestVersion1:
    def test_the_line_is_that_of_the_specification(self) -> None:
        assert build_v1(ONE, OTHER) == b"PROXY TCP4 192.0.2.7 198.51.100.1 56324 443\r\n"
        assert build_v1(ONE_6, OTHER_6) == b"PROXY TCP6 2001:db8::7 2001:db8::8 1 65535\r\n"
        assert build_v1(None, None) == build_v1(ONE, None) == build_v1(None, OTHER) == b"PROXY UNKNOWN\r\n"
        assert build_local("v1") == b"PROXY UNKNOWN\r\n"

    def test_two_families_become_ipv6_without_dots(self) -> None:
        line = build_v1(ONE, OTHER_6)
        assert line == b"PROXY TCP6 ::ffff:c000:0207 2001:db8::8 56324 65535\r\n"
        assert read(line)[0] == ProxyHeader(False, ONE, OTHER_6)
        assert read(build_v1(ONE_6, OTHER))[0] == ProxyHeader(False, ONE_6, OTHER)

    @pytest.mark.parametrize("host", ["::1.2.3.4", "::ffff:0:1.2.3.4", "64:ff9b::1.2.3.4", "::"])
    def test_no_ipv6_address_has_dots(self, host: str) -> None:
        line = build_v1(Address(host, 1), OTHER_6)
        header, _ = read(line)
        assert b"." not in line
        assert header is not None and header.source is not None
        assert socket.inet_pton(socket.AF_INET6, header.source.host) == socket.inet_pton(socket.AF_INET6, host)

    def test_the_longest_line_is_read(self) -> None:
        host = ":".join(["ffff"] * 8)
        line = f"PROXY UNKNOWN {host} {host} 65535 65535\r\n".encode()
        assert len(line) == LONGEST_V1
        assert read(line + b"after") == (ProxyHeader(), LONGEST_V1)

    @pytest.mark.parametrize("step", [1, 7, LONGEST_V1, 4096])
    def test_a_line_of_108_bytes_is_rejected(self, step: int) -> None:
        line = b"PROXY UNKNOWN " + b"x" * 92 + b"\r\n"
        assert len(line) == 108
        for sent in (line, line[:107]):  # without waiting for what does not help any more
            with pytest.raises(ProxyHeaderError, match="more than 107 bytes"):
                read(sent, step)

    @pytest.mark.parametrize(
        "line",
        [
            b"PROXY TCP4 1.2.3.4 1.2.3.4 +1 2",
            b"PROXY TCP4 1.2.3.4 1.2.3.4 01 2",
            b"PROXY TCP4 1.2.3.4 1.2.3.4 1_0 2",
            b"PROXY TCP4 1.2.3.4 1.2.3.4 65536 2",
            b"PROXY TCP4 1.2.3.4 1.2.3.4 -1 2",
            b"PROXY TCP4 1.2.3.4 1.2.3.4 \xd9\xa1 2",
            b"PROXY TCP4 1.2.3.4 1.2.3.4 1",
            b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2 3",
            b"PROXY TCP4  1.2.3.4 1.2.3.4 1 2",
            b"PROXY TCP4 01.2.3.4 1.2.3.4 1 2",
            b"PROXY TCP4 1.2.3 1.2.3.4 1 2",
            b"PROXY TCP4 ::1 ::1 1 2",
            b"PROXY TCP6 1.2.3.4 1.2.3.4 1 2",
            b"PROXY TCP6 fe80::1%lo ::1 1 2",
            b"PROXY TCP4 \xff 1.2.3.4 1 2",
            b"PROXY TCP4 1.2.3.4\0 1.2.3.4 1 2",
            b"PROXY UDP4 1.2.3.4 1.2.3.4 1 2",
            b"PROXY ",
            b"PROXY UNKNOWNX",
        ],
    )
    def test_a_line_that_is_not_exact_is_rejected(self, line: bytes) -> None:
        with pytest.raises(ProxyHeaderError, match="the line of version 1"):
            read(line + b"\r\n")

    @pytest.mark.parametrize("step", [1, 4096])
    def test_a_line_without_cr_is_rejected(self, step: int) -> None:
        with pytest.raises(ProxyHeaderError, match="does not end with CRLF"):
            read(b"PROXY UNKNOWN\nGET / HTTP/1.1\r\n\r\n", step)


class TestVersion2:
    def test_the_bytes_are_those_of_the_specification(self) -> None:
        assert build_v2(ONE, OTHER) == SIGNATURE + bytes.fromhex("2111000c c0000207 c6336401 dc04 01bb")
        assert build_v2(ONE_6, OTHER_6)[12:16] == bytes.fromhex("21210024")
        local = SIGNATURE + bytes.fromhex("20000000")
        assert build_v2(None, None) == build_v2(ONE, None) == build_v2(None, OTHER) == build_local("v2") == local
        assert read(local) == (ProxyHeader(is_local=True), 16)

    def test_entries_arrive(self) -> None:
        tls = SSLEntry("TLSv1.3", "TLS_AES_256_GCM_SHA384", "älice", is_verified=True)
        texts = [(AUTHORITY, "db.internal"), (DESTINATION, "a" * 52 + ".b32.i2p"), (UNIQUE_ID, "x" * 300)]
        header, _ = read(build_v2(ONE, OTHER, [(ALPN, b"h2"), (SSL, tls.value()), *texts]))
        assert header is not None and header.source == ONE and header.destination == OTHER
        assert header.ssl() == tls
        assert [header.text(kind) for kind in (ALPN, AUTHORITY, DESTINATION, UNIQUE_ID, NOOP)] == [
            "h2", "db.internal", "a" * 52 + ".b32.i2p", "x" * 128, None,
        ]  # fmt: skip

    def test_a_client_without_a_certificate_is_not_verified(self) -> None:
        assert SSLEntry("TLSv1.2").value() == b"\x01\0\0\0\x01\x21\0\x07TLSv1.2"
        assert SSLEntry.parse(SSLEntry("TLSv1.2").value()) == SSLEntry("TLSv1.2")
        shown_but_rejected = struct.pack("!BI", 0x07, 20) + entry(0x22, b"mallory")
        assert SSLEntry.parse(shown_but_rejected).is_verified is False

    @pytest.mark.parametrize(
        ("flags", "is_verified"), [(0x00, False), (0x01, False), (0x06, False), (0x03, True), (0x05, True)]
    )
    def test_a_certificate_counts_over_tls_on_the_connection_or_in_the_session(
        self, flags: int, is_verified: bool
    ) -> None:
        assert SSLEntry.parse(bytes([flags, 0, 0, 0, 0])) == SSLEntry(is_verified=is_verified)

    @pytest.mark.parametrize(
        ("text", "sent"),
        [("x" + "é" * 10_000, "x" + "é" * 127), ("é" * 10_000, "é" * 127), ("a\udcff", "a?")],
        ids=["fits", "cut", "no character"],
    )
    def test_long_texts_are_cut_between_characters(self, text: str, sent: str) -> None:
        header, _ = read(build_v2(None, None, [(AUTHORITY, text)]))
        assert header is not None
        assert header.text(AUTHORITY) == sent

    def test_a_mapped_address_is_ipv4(self) -> None:
        mapped = bytes(10) + b"\xff\xff" + bytes([192, 0, 2, 7])
        header, _ = read(v2(0x21, 0x21, mapped + mapped + struct.pack("!HH", 1, 2)))
        assert header == ProxyHeader(False, Address("192.0.2.7", 1), Address("192.0.2.7", 2))

    @pytest.mark.parametrize("family", [0x00, 0x11, 0x21, 0x99])
    def test_of_a_local_connection_everything_else_is_ignored(self, family: int) -> None:
        assert read(v2(0x20, family, b"\x03\xff\xff???") + b"after") == (ProxyHeader(is_local=True), 22)

    @pytest.mark.parametrize(
        "more", [entry(SSL, b"\1\0"), entry(CRC32C, bytes(4)), b"\5"], ids=["tls", "checksum", "entry"]
    )
    def test_of_a_local_connection_wrong_entries_are_ignored(self, more: bytes) -> None:
        right = entry(DESTINATION, b"a")
        assert read(v2(0x20, 0, right + more)) == (ProxyHeader(is_local=True), 16 + len(right + more))
        assert read(v2(0x20, 0, right)) == (ProxyHeader(is_local=True, entries=((DESTINATION, b"a"),)), 16 + len(right))

    def test_unix_addresses_are_skipped(self) -> None:
        header, taken = read(v2(0x21, 0x31, b"\xff" * 216 + entry(AUTHORITY, b"a")) + b"after")
        assert header == ProxyHeader(False, None, None, ((AUTHORITY, b"a"),))
        assert taken == 16 + 216 + 4

    @pytest.mark.parametrize(
        ("header", "problem"),
        [
            (v2(0x11, 0x11, TCP4), "version and command 0x11"),
            (v2(0x22, 0x11, TCP4), "version and command 0x22"),
            (v2(0x21, 0x12, TCP4), "family and protocol 0x12"),
            (v2(0x21, 0x10, TCP4), "family and protocol 0x10"),
            (v2(0x21, 0x41, TCP4), "family and protocol 0x41"),
            (v2(0x21, 0x11, TCP4[:-1]), "too short"),
            (v2(0x21, 0x21, TCP4), "too short"),
            (v2(0x21, 0x31, TCP4), "too short"),
            (v2(0x21, 0x11, TCP4 + b"\x01"), "last entry is cut"),
            (v2(0x21, 0x11, TCP4 + b"\x01\0"), "last entry is cut"),
            (v2(0x21, 0x11, TCP4 + b"\x01\0\1"), "longer than the header"),
            (v2(0x21, 0x11, TCP4 + entry(SSL, b"\1\0\0\0")), "entry about TLS is cut"),
            (v2(0x21, 0x11, TCP4 + entry(SSL, b"\1\0\0\0\0\x21\0\2T")), "longer than the header"),
            (b"GET / HTTP/1.1\r\n\r\n", "does not begin with a header"),
            (b"PROXYTCP4 1.2.3.4 1.2.3.4 1 2\r\n", "does not begin with a header"),
            (SIGNATURE[:-1] + b"\r" + TCP4, "does not begin with a header"),
            (b"\x16\x03\x01", "does not begin with a header"),
            (b"\0", "does not begin with a header"),
        ],
    )
    @pytest.mark.parametrize("step", [1, 4096])
    def test_a_header_that_is_not_exact_is_rejected(self, header: bytes, problem: str, step: int) -> None:
        with pytest.raises(ProxyHeaderError, match=problem):
            read(header, step)

    def test_a_stranger_is_rejected_by_the_first_wrong_byte(self) -> None:
        for right in range(12):
            with pytest.raises(ProxyHeaderError):
                HeaderReader().feed(SIGNATURE[:right] + b"x")

    @pytest.mark.parametrize("step", [1, 4096])
    def test_64_kib_of_entries_are_read(self, step: int) -> None:
        full = TCP4 + entry(NOOP, bytes(0xFFFF - len(TCP4) - 3))
        assert len(full) == 0xFFFF
        header, taken = read(v2(0x21, 0x11, full) + b"after", step)
        assert header is not None and header.source == Address("1.2.3.4", 9)
        assert taken == 16 + 0xFFFF

    def test_own_entries_are_bounded(self) -> None:
        assert len(build_v2(None, None, [(NOOP, bytes(64_997))])) == 16 + 65_000
        with pytest.raises(ValueError, match="at most 65000 bytes"):
            build_v2(None, None, [(NOOP, bytes(64_998))])


class TestChecksum:
    def test_the_values_are_those_of_the_rfc(self) -> None:
        # RFC 3720, appendix B.4, as the numbers that these bytes are.
        assert checksum(bytes(32)) == 0x8A9136AA
        assert checksum(b"\xff" * 32) == 0x62A8AB43
        assert checksum(bytes(range(32))) == 0x46DD794E
        assert checksum(b"123456789") == 0xE3069283

    def test_a_right_one_is_accepted(self) -> None:
        header, _ = read(with_checksum(0x21, 0x11, TCP4 + entry(AUTHORITY, b"a")))
        assert header is not None and header.source == Address("1.2.3.4", 9)

    def test_any_changed_byte_is_found(self) -> None:
        header = with_checksum(0x21, 0x11, TCP4 + entry(AUTHORITY, b"name"))
        for at in [*range(16, 28), *range(31, 35), *range(len(header) - 4, len(header))]:
            wrong = bytearray(header)
            wrong[at] ^= 0x10
            with pytest.raises(ProxyHeaderError, match="checksum is wrong"):
                read(bytes(wrong))

    @pytest.mark.parametrize("value", [b"", b"abc", b"abcde"])
    def test_one_of_another_length_is_rejected(self, value: bytes) -> None:
        with pytest.raises(ProxyHeaderError, match="checksum is wrong"):
            read(v2(0x21, 0x11, TCP4 + entry(CRC32C, value)))


# -- whatever the bytes ------------------------------------------------------------------------------------------------

hosts_4 = st.ip_addresses(v=4).map(str)
hosts_6 = st.ip_addresses(v=6).filter(lambda host: host.ipv4_mapped is None).map(str)
ports = st.integers(0, 65535)
addresses = st.one_of(*[st.tuples(*[st.builds(Address, hosts, ports)] * 2) for hosts in (hosts_4, hosts_6)])
entries = st.lists(st.tuples(st.integers(0x40, 0xFF), st.binary(max_size=300)), max_size=20)


def as_bytes(address: Address) -> tuple[bytes, int]:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    return socket.inet_pton(family, address.host), address.port


@given(addresses, entries, st.integers(1, 200), st.binary(max_size=50))
def test_what_is_built_is_read_back_in_any_pieces(
    ends: tuple[Address, Address], added: list[tuple[int, bytes]], step: int, after: bytes
) -> None:
    line = build_v1(*ends)
    binary = build_v2(*ends, added)
    assert len(line) <= LONGEST_V1
    for built in (line, binary):
        header, taken = read(built + after, step)
        assert taken == len(built)
        assert header is not None and header.source is not None and header.destination is not None
        assert [as_bytes(end) for end in (header.source, header.destination)] == [as_bytes(end) for end in ends]
        assert header.entries == (tuple(added) if built is binary else ())


@given(addresses, entries)
def test_every_cut_is_incomplete(ends: tuple[Address, Address], added: list[tuple[int, bytes]]) -> None:
    for built in (build_v1(*ends), build_v1(None, None), build_v2(*ends, added), build_v2(None, None, added)):
        reader = HeaderReader()
        for byte in built[:-1]:
            assert reader.feed(bytes([byte])) == 1
            assert reader.header is None
        assert reader.feed(built[-1:] + b"after") == 1
        assert reader.header is not None


@given(
    st.one_of(
        st.binary(min_size=1, max_size=400),
        st.binary(max_size=120).map(lambda rest: b"PROXY " + rest),
        st.text("0123456789.: TCPUNKOW\r\n", max_size=120).map(lambda rest: b"PROXY TCP" + rest.encode()),
        st.builds(
            v2,
            st.sampled_from([0x20, 0x21, 0x22]),
            st.sampled_from([0x00, 0x11, 0x21, 0x31, 0x12]),
            st.binary(max_size=300),
        ),
        st.builds(
            lambda body: v2(0x21, 0x11, TCP4 + body),
            st.lists(st.builds(entry, st.integers(0, 255), st.binary(max_size=40)), max_size=5).map(b"".join),
        ),
    ),
    st.integers(1, 50),
)
def test_whatever_comes_is_a_header_or_one_error_whatever_the_pieces(data: bytes, step: int) -> None:
    outcomes = []
    for size in (step, len(data)):
        try:
            outcomes.append(read(data, size))
        except ProxyHeaderError as error:
            assert str(error).isprintable()
            outcomes.append((None, -1))
    assert outcomes[0] == outcomes[1]
