"""Numbers that peers send: digits and nothing else, whoever reads them.

`int()` and `float()` take more than a grammar's digits ("0x5", "1_0", "+5", " 5", digits of other scripts), and two
readers that take a length differently are how requests are smuggled.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import proxy
from proxy.downstream.proxy_protocol import NotProxyProtocol, ProxyHeader, ProxyProtocolReader
from proxy.exchange.forward import is_last_hop
from proxy.http import semantics
from proxy.http.grpc import timeout_s
from proxy.http.h1.chunked import ChunkedReader, single_chunk
from proxy.http.h2.heads import parse_response
from proxy.http.message import RequestHead, ResponseHead

TRICKS = (
    b"0x5", b"0X5", b"5_0", b"_5", b"+5", b"-5", b" 5", b"5 ", b"\t5", b"5\x0b", b"\x0c5", b"5\x00", b"0b1", b"0o7", b"5.0",
    b"5e0", b"1e3", b"inf", b"nan", b"", b"0x", b"\xd9\xa5", b"\xef\xbc\x95", b"\xb2", b"5\xa0", b"\x855", b"5\r", b"5\n",
)  # fmt: skip
nearly = st.one_of(
    st.sampled_from(TRICKS),
    st.text("0123456789abcdefABCDEFxX_+- .\t\x0b\x0ceEoO", max_size=12).map(str.encode),
    st.text(max_size=6).map(str.encode),
    st.binary(max_size=12),
    st.from_regex(rb"[0-9]{1,20}", fullmatch=True),
    st.from_regex(rb"[0-9A-Fa-f]{1,18}", fullmatch=True),
)


def _digits(value: bytes, most: int) -> bool:
    return re.fullmatch(rb"[0-9]{1,%d}" % most, value) is not None


@given(nearly)
@example(b"0x5")
@example(b"0X5")
def test_a_chunk_size_is_hexadecimal_digits(size: bytes) -> None:
    right = re.fullmatch(rb"[0-9A-Fa-f]{1,16}", size) is not None
    body = b"a" * int(size, 16) if right and int(size, 16) < 4096 else b"aaaaa"
    data = size + b"\r\n" + body + b"\r\n0\r\n\r\n"
    reader = ChunkedReader(0, 1024, 16)
    reader.read(data)
    if not right and b"\r\n" not in size and b";" not in size:
        assert reader.fault
        assert single_chunk(data) is None
    if single_chunk(data) is not None:  # the shortcut never takes what the reader does not
        assert reader.done
        assert not reader.fault


@given(nearly)
def test_decimals_and_hexadecimals_are_digits(value: bytes) -> None:
    assert semantics.decimal(value, 9) == (int(value) if _digits(value, 9) else None)
    right = re.fullmatch(rb"[0-9A-Fa-f]{1,8}", value) is not None
    assert semantics.hexadecimal(value, 8) == (int(value, 16) if right else None)


@given(nearly)
def test_a_content_length_is_digits(value: bytes) -> None:
    right = _digits(value, 19) and int(value) < 2**63
    assert semantics.content_length(value) == (int(value) if right else None)


@given(nearly)
def test_a_port_is_digits(value: bytes) -> None:
    right = not value or (_digits(value, 5) and int(value) < 65536)
    assert (semantics.authority(b"a.test:" + value) is not None) == right


@given(nearly)
def test_a_status_is_three_digits(value: bytes) -> None:
    right = re.fullmatch(rb"[1-9][0-9]{2}", value) is not None
    assert isinstance(parse_response([(b":status", value)]), ResponseHead) == right


@given(nearly, st.sampled_from([b"H", b"M", b"S", b"m", b"u", b"n", b"x", b""]))
def test_a_grpc_timeout_is_digits_and_a_unit(value: bytes, unit: bytes) -> None:
    head = RequestHead(b"POST", b"/", b"a.test", [(b"grpc-timeout", value + unit)], {})
    right = re.fullmatch(rb"[0-9]{1,8}[HMSmun]", value + unit) is not None
    assert (timeout_s(head) is not None) == right


@given(nearly)
def test_max_forwards_is_digits(value: bytes) -> None:
    head = RequestHead(b"OPTIONS", b"*", b"a.test", [], {b"max-forwards": value})
    assert is_last_hop(head) == (re.fullmatch(rb"0+", value) is not None)


@given(nearly)
def test_a_port_of_a_proxy_header_is_digits(value: bytes) -> None:
    reader = ProxyProtocolReader()
    found = reader.receive(b"PROXY TCP4 192.0.2.1 192.0.2.2 " + value + b" 443\r\n") or reader.receive_eof()
    right = re.fullmatch(rb"0|[1-9][0-9]{0,4}", value) is not None and int(value) < 65536
    assert isinstance(found, ProxyHeader if right else NotProxyProtocol)


# Nobody reads a peer's number in a way of his own.

_READERS = {"decimal", "hexadecimal"}
_OWN_NUMBERS = {
    # Already a number, or the kernel's: no peer wrote the text.
    ("http/connection.py", "int(struct.unpack_from('=Q', info, 200)[0])"),
    ("exchange/service.py", "int(monotonic())"),
    # What a regular expression has limited to digits.
    ("http/h1/response.py", "int(match[2])"),
}


def _is_computed(value: ast.expr) -> bool:
    least = isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id in ("min", "max")
    return least or isinstance(value, ast.BinOp | ast.Compare | ast.Constant)


@pytest.mark.parametrize("room", ["http", "exchange", "downstream", "l4"])
def test_peers_numbers_are_read_in_one_place(room: str) -> None:
    root = Path(proxy.__file__).parent
    strange = []
    for path in sorted((root / room).rglob("*.py")):
        tree = ast.parse(path.read_text())
        inside = {
            id(call)
            for function in ast.walk(tree)
            if isinstance(function, ast.FunctionDef) and function.name in _READERS
            for call in ast.walk(function)
        }
        for call in ast.walk(tree):
            if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or id(call) in inside:
                continue
            name = path.relative_to(root).as_posix()
            text = ast.unparse(call)
            if call.func.id in ("int", "float") and not _is_computed(call.args[0]) and (name, text) not in _OWN_NUMBERS:
                strange.append(f"{name}:{call.lineno}: {text}")
    assert not strange, "read by semantics.decimal or hexadecimal instead: " + "; ".join(strange)
