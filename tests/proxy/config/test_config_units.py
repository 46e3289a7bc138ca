import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.config import units
from proxy.config.units import Address, UnitError


def refused(parse, value):
    with pytest.raises(UnitError) as caught:
        parse(value)
    return caught.value


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("250ms", 0.25),
        ("2s", 2.0),
        ("1m30s", 90.0),
        ("1.5s", 1.5),
        ("1d2h3m4s5ms6us", 93784.005006),
        ("0", 0.0),
        ("0s", 0.0),
        (0, 0.0),
        ("100us", 0.0001),
        ("366d", 366 * 86400.0),
    ],
)
def test_duration(written, seconds):
    assert units.parse_duration(written) == seconds


@pytest.mark.parametrize(
    ("written", "suggestion"),
    [
        ("fast", ""),
        ("", ""),
        (10, "10s"),
        (1.5, "1.5s"),
        ("10", "10s"),
        ("10 ms", "10ms"),
        ("5 seconds", "5s"),
        ("2min", "2m"),
        ("1 hour", "1h"),
        ("30s1m", ""),
        ("-1s", ""),
        ("1s\n", "1s"),
        ("\u0661s", ""),
        (True, ""),
        (None, ""),
        (("2s",), ""),
    ],
)
def test_duration_refused(written, suggestion):
    error = refused(units.parse_duration, written)
    assert error.message.startswith("expected a duration such as 250ms, 2s or 1m30s, got ")
    assert error.suggestion == suggestion


def test_duration_bounds():
    assert "whole microseconds" in refused(units.parse_duration, "0.5us").message
    assert "at most 366d" in refused(units.parse_duration, "367d").message


@pytest.mark.parametrize(
    ("seconds", "written"),
    [(0.25, "250ms"), (2.0, "2s"), (60.0, "60s"), (90.0, "90s"), (1800.0, "30m"), (5400.0, "1h30m"), (0.0, "0s"), (0.0015, "1.5ms"), (1e-06, "1us"), (3600.5, "1h0.5s")],
)  # fmt: skip
def test_duration_printed(seconds, written):
    assert units.format_duration(seconds) == written


@given(st.integers(0, units.DURATION_MAX_S * 1_000_000))
def test_durations_survive_printing(micros):
    seconds = micros / 1_000_000
    written = units.format_duration(seconds)
    assert units.parse_duration(written) == seconds
    assert re.search(units.DURATION_PATTERN, written)


@pytest.mark.parametrize(
    ("written", "size"),
    [("64KiB", 65536), ("1MiB", 1 << 20), (0, 0), (1000, 1000), ("1000", 1000), ("10MB", 10_000_000), ("1.5KiB", 1536), ("12B", 12)],
)  # fmt: skip
def test_size(written, size):
    assert units.parse_size(written) == size


@pytest.mark.parametrize(
    ("written", "suggestion"),
    [("64k", "64KiB"), ("64 KiB", "64KiB"), ("1gb", "1GiB"), ("big", ""), (-1, ""), ("0.3B", ""), (True, ""), (None, ""), (1.5, "")],
)  # fmt: skip
def test_size_refused(written, suggestion):
    error = refused(units.parse_size, written)
    assert error.message.startswith("expected a size such as 64KiB")
    assert error.suggestion == suggestion


@given(st.integers(0, units.SIZE_MAX_BYTES))
def test_sizes_survive_printing(size):
    assert units.parse_size(units.format_size(size)) == size


def test_size_printed_in_the_largest_unit():
    assert [units.format_size(size) for size in (65536, 1 << 20, 1000, 0)] == ["64KiB", "1MiB", 1000, 0]


@pytest.mark.parametrize(
    ("written", "share"), [("5%", 0.05), ("100%", 1.0), ("0%", 0.0), ("0.5%", 0.005), ("33.3%", 0.333)]
)
def test_share(written, share):
    assert units.parse_share(written) == share


@pytest.mark.parametrize(
    ("written", "suggestion"),
    [(5, "5%"), (0.05, "5%"), ("5", "5%"), ("5 %", "5%"), ("101%", ""), (-5, ""), ("-5%", ""), ("half", ""), (True, ""), (None, ""), (1.0, "100%")],
)  # fmt: skip
def test_share_refused(written, suggestion):
    error = refused(units.parse_share, written)
    assert error.message.startswith("expected a percentage from 0% to 100% such as 5%, got ")
    assert error.suggestion == suggestion


@given(st.decimals(0, 100, places=6, allow_nan=False))
def test_shares_survive_printing(percent):
    share = units.parse_share(f"{percent:f}%")
    assert 0 <= share <= 1
    assert units.parse_share(units.format_share(share)) == share


@pytest.mark.parametrize(
    ("written", "address"),
    [
        ("127.0.0.1:8080", Address("127.0.0.1", 8080)),
        ("[::1]:8080", Address("::1", 8080)),
        ("[0:0:0:0:0:0:0:0]:1", Address("::", 1)),
        ("[fe80::1%eth0]:80", Address("fe80::1%eth0", 80)),
        ("API.example.com:443", Address("api.example.com", 443)),
        ("api.example.com.:443", Address("api.example.com.", 443)),
        ("my_service:80", Address("my_service", 80)),
        ("unix:/run/x.sock", Address(path="/run/x.sock")),
    ],
)
def test_address(written, address):
    assert units.parse_address(written) == address
    assert units.parse_address(str(address)) == address


def test_port_zero_is_for_listeners():
    assert units.parse_address("127.0.0.1:0", port_min=0) == Address("127.0.0.1", 0)
    assert "expected a port from 1 to 65535" in refused(units.parse_address, "127.0.0.1:0").message


@pytest.mark.parametrize(
    ("written", "message", "suggestion"),
    [
        (8080, "expected an address", "127.0.0.1:8080"),
        ("example.com", "has no port", "example.com:8080"),
        ("[::1]", "has no port", "[::1]:8080"),
        (":8080", "has no host", "127.0.0.1:8080"),
        ("::1:8080", "in brackets", "[::1]:8080"),
        ("fe80::", "in brackets", "[fe80::]:8080"),
        ("a:b:80", "in brackets", ""),
        ("https://api.example.com/x", "without a scheme", "api.example.com:443"),
        ("http://api.example.com:81", "without a scheme", "api.example.com:81"),
        ("/run/x.sock", "expected an address", "unix:/run/x.sock"),
        ("unix:run/x.sock", "absolute path", "unix:/run/x.sock"),
        ("unix:", "absolute path", ""),
        ("unix:/" + "x" * 110, "at most 107 bytes", ""),
        ("host:99999", "expected a port", ""),
        ("host:http", "expected a port", ""),
        ("host:+80", "expected a port", ""),
        ("10.0.0.256:80", "expected an IPv4 address", ""),
        ("1.2.3:80", "expected an IPv4 address", ""),
        ("[::x]:80", "expected an IPv6 address", ""),
        ("[::1:80", "expected an IPv6 address", ""),
        ("a b:80", "expected a host name", ""),
        ("-a:80", "expected a host name", ""),
        ("a..b:80", "expected a host name", ""),
        ("bücher.de:80", "in ASCII", "xn--bcher-kva.de"),
        ("", "has no port", ""),
        (None, "expected an address", ""),
        (True, "expected an address", ""),
        (("a:1",), "expected an address", ""),
    ],
)
def test_address_refused(written, message, suggestion):
    error = refused(units.parse_address, written)
    assert message in error.message
    assert error.suggestion == suggestion


@given(st.text(max_size=40))
def test_any_text_parses_or_is_refused(text):
    refusals = []
    for parse in (units.parse_duration, units.parse_size, units.parse_share, units.parse_address):
        try:
            parse(text)
        except UnitError as refusal:
            refusals.append(refusal.message)
    assert all(refusals)


def test_shown_is_short():
    assert units.shown("x" * 1000).endswith("…")
    assert [units.shown(one) for one in (True, None, {}, (), 5)] == ["true", "nothing", "a mapping", "a list", "5"]
