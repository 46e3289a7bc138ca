"""Every way we know to make two readers of HTTP/1.1 disagree: each is refused, or has the one reading given here.

The outcome of octets is what an origin would get: (method, target, body) of every request, then the status of a
refusal."""

from __future__ import annotations

import httptools
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.errors import Kind
from proxy.http.h1 import H1ClientCodec, H1Limits, H1ServerCodec
from proxy.http.message import (
    DataReceived,
    HeadersReceived,
    HeadRefused,
    RequestHead,
    ResponseHead,
    StreamReset,
    TrailersReceived,
)


def outcome(*pieces):
    codec = H1ServerCodec(H1Limits())
    requests: list[list[bytes]] = []
    statuses: list[int] = []

    def take(events):
        for event in events:
            match event:
                case HeadersReceived(head=head):
                    requests.append([head.method, head.target, b""])
                case DataReceived(data=data):
                    requests[-1][2] += data
                case HeadRefused(error=error) | StreamReset(error=error):
                    statuses.append(error.status)
            if getattr(event, "end", False) or isinstance(event, HeadRefused | TrailersReceived):
                codec.send_headers(event.stream_id, ResponseHead(200, [], {}, content_length=0), True)

    for piece in pieces:
        take(codec.receive(piece))
        while codec.pending:
            take(codec.receive(b""))
    return [tuple(r) for r in requests] + statuses


def heads(*lines, start=b"POST / HTTP/1.1", host=True, end=b"\r\n"):
    return end.join((start, *((b"Host: h",) if host else ()), *lines, b"", b""))


SMUGGLED = b"GET /evil HTTP/1.1\r\nHost: h\r\n\r\n"
POST = (b"POST", b"/")
EVIL = (b"GET", b"/evil", b"")
ONE_CHUNK = b"1\r\nx\r\n0\r\n\r\n"


def chunked(body):
    return heads(b"Transfer-Encoding: chunked") + body


# Which length counts.
REFUSED_400 = {
    "CL.TE": heads(b"Content-Length: 6", b"Transfer-Encoding: chunked") + b"0\r\n\r\nG",
    "TE.CL": heads(b"Transfer-Encoding: chunked", b"Content-Length: 4") + b"5c\r\n" + SMUGGLED,
    "CL.0 with TE": heads(b"Content-Length: 0", b"Transfer-Encoding: chunked") + b"0\r\n\r\n",
    "CL.CL differ": heads(b"Content-Length: 8", b"Content-Length: 7"),
    "CL.CL agree": heads(b"Content-Length: 5", b"Content-Length: 5") + b"hello",
    "CL list differs": heads(b"Content-Length: 8, 7"),
    "CL list agrees": heads(b"Content-Length: 5, 5") + b"hello",
    "CL and an empty CL": heads(b"Content-Length: 5", b"Content-Length:") + b"hello",
    "an empty CL and CL": heads(b"Content-Length:", b"Content-Length: 5") + b"hello",
    "CL in another case": heads(b"Content-Length: 5", b"cONTENT-lENGTH: 6"),
    "TE in 1.0": heads(b"Transfer-Encoding: chunked", start=b"POST / HTTP/1.0") + ONE_CHUNK,
    "CL.TE in 1.0": heads(b"Content-Length: 5", b"Transfer-Encoding: chunked", start=b"POST / HTTP/1.0"),
    "CL on CONNECT": heads(b"Content-Length: 5", start=b"CONNECT a:1 HTTP/1.1"),
    "TE on CONNECT": heads(b"Transfer-Encoding: chunked", start=b"CONNECT a:1 HTTP/1.1"),
    "CL_ twin": heads(b"Content_Length: 5"),
    "CL_ twin beside CL": heads(b"Content-Length: 0", b"content_length: 5"),
    "TE_ twin": heads(b"Transfer_Encoding: chunked"),
    "Connection names CL": heads(b"Connection: content-length", b"Content-Length: 5"),
    "Connection names TE": heads(b"Connection: close, Transfer-Encoding", b"Transfer-Encoding: chunked"),
    "Connection names Host": heads(b"Connection: Host"),
    "Connection with an invalid option": heads(b"Connection: close; x"),
}
# What a length may be.
REFUSED_400 |= {
    f"CL {value!r}": heads(b"Content-Length: " + value)
    for value in (
        b"+5",
        b"-5",
        b"-0",
        b"0x5",
        b"5_0",
        b"5 5",
        b"5\t5",
        b"",
        b"5,",
        b",5",
        b"5;",
        b"5.0",
        b"5e0",
        b"five",
        b"'5'",
        b'"5"',
        b"\xd9\xa5",
        b"9223372036854775808",
        b"18446744073709551616",
        b"0" * 20,
        b"5\x0b",
        b"5\x00",
        b"5\xa0",
        b"5\x85",
    )
}
# What a transfer coding may be.
REFUSED_400 |= {
    f"TE {value!r}": heads(b"Transfer-Encoding: " + value) + ONE_CHUNK
    for value in (
        b"",
        b"xchunked",
        b"chunkedx",
        b"chunked, chunked",
        b"chunked,",
        b",chunked",
        b"chunked, identity",
        b"identity",
        b"chunked, gzip",
        b"gzip",
        b"identity, chunked",
        b"chunked;q=1",
        b'"chunked"',
        b"'chunked'",
        b"chunk",
        b"c hunked",
        b"chunked x",
        b"\x0bchunked",
        b"chunked\x0b",
        b"\x0cchunked",
        b"chunked\x00",
        b"\x1cchunked",
        b"chunked\x1f",
        b"chunked\x7f",
        b"\xa0chunked",
        b"chunked\x85",
        b"\xc2\xa0chunked",
        b"ch\xc5\xbfunked",
        b"chun\xe2\x84\xaaed",
        b"ga zip, chunked",
        b"gzip,, chunked",
        b"trailers",
    )
}
REFUSED_400 |= {
    "TE twice": heads(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked") + ONE_CHUNK,
    "TE chunked, then identity": heads(b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity") + ONE_CHUNK,
    "TE and an empty TE": heads(b"Transfer-Encoding: chunked", b"Transfer-Encoding:") + ONE_CHUNK,
    "TE in another case twice": heads(b"Transfer-Encoding: x", b"transfer-encoding: chunked, chunked") + ONE_CHUNK,
}
# How a field line is written.
REFUSED_400 |= {
    f"line {line!r}": heads(line) + ONE_CHUNK
    for line in (
        b"Transfer-Encoding : chunked",
        b"Transfer-Encoding\t: chunked",
        b" Transfer-Encoding: chunked",
        b"\tTransfer-Encoding: chunked",
        b"Transfer-Encoding\x00: chunked",
        b"Transfer-Encoding\x0b: chunked",
        b"\x00Transfer-Encoding: chunked",
        b"Transfer Encoding: chunked",
        b"Transfer-Encoding",
        b"Transfer-Encoding chunked",
        b":chunked",
        b": chunked",
        b"Transfer-Encoding\xa0: chunked",
        b"\xefTransfer-Encoding: chunked",
        b"Trans\xc5\xbfer-Encoding: chunked",
        b"Transfer-Encoding;: chunked",
        b"Transfer-Encoding=chunked",
        b"(Transfer-Encoding): chunked",
        b"A: b\r\n Transfer-Encoding: chunked",
        b"A: b\r\n\tc",
        b"Transfer-Encoding:\r\n chunked",
        b"Content-Length: 5\r\n 0",
        b"A: b\x00c",
        b"A: b\x01",
        b"A: b\x7f",
        b"A: b\x08",
        b"A: b\rTransfer-Encoding: chunked",
        b"A: b\nTransfer-Encoding: chunked",
        b"A: b\n",
        b"A: b\r",
        b"A: b\r\r",
        b"A: b\n\rC: d",
        b"\rA: b",
        b"\nA: b",
        b"A\r: b",
        b"A\n: b",
        b"@: b",
        b"A[0]: b",
        b'"A": b',
        b"A/b: c",
        b"A,b: c",
        b"A?: b",
        b"{A}: b",
        b"A\\: b",
    )
}
# How lines end.
REFUSED_400 |= {
    "LF only": heads(b"Content-Length: 0", end=b"\n"),
    "CR only": heads(b"Content-Length: 0", end=b"\r"),
    "LF CR": heads(b"Content-Length: 0", end=b"\n\r"),
    "CR CR LF": heads(b"Content-Length: 0", end=b"\r\r\n"),
    "LF after the request line": b"GET / HTTP/1.1\nHost: h\r\n\r\n",
    "LF before the empty line": b"GET / HTTP/1.1\r\nHost: h\n\r\n",
    "LF as the empty line": b"GET / HTTP/1.1\r\nHost: h\r\n\n" + SMUGGLED,
    "CR as the empty line": b"GET / HTTP/1.1\r\nHost: h\r\n\r" + SMUGGLED,
    "LF first": b"\n" + SMUGGLED,
    "CR first": b"\r" + SMUGGLED,
    "space first": b" " + SMUGGLED,
    "NUL first": b"\x00" + SMUGGLED,
    "many empty lines first": b"\r\n" * 5 + SMUGGLED,
    "a space on the empty line": b"GET / HTTP/1.1\r\nHost: h\r\n \r\n\r\n",
}
# The request line.
REFUSED_400 |= {
    f"request line {line!r}": heads(start=line)
    for line in (
        b"GET",
        b"GET /",
        b"GET / ",
        b"/ HTTP/1.1",
        b" / HTTP/1.1",
        b"GET  / HTTP/1.1",
        b"GET /  HTTP/1.1",
        b"GET / HTTP/1.1 ",
        b" GET / HTTP/1.1",
        b"GET\t/ HTTP/1.1",
        b"GET /\tHTTP/1.1",
        b"GET / HTTP/1.1\t",
        b"GET /\x0bHTTP/1.1",
        b"GET\x0c/ HTTP/1.1",
        b"GET / a HTTP/1.1",
        b"GET /a b HTTP/1.1",
        b"G=T / HTTP/1.1",
        b"GET\x00 / HTTP/1.1",
        b"G\xcbT / HTTP/1.1",
        b"(GET) / HTTP/1.1",
        b"GET: / HTTP/1.1",
        b"GET /\x00 HTTP/1.1",
        b"GET /\x7f HTTP/1.1",
        b"GET /\xe9 HTTP/1.1",
        b"GET /\r HTTP/1.1",
        b"GET /\n HTTP/1.1",
        b"GET /#x HTTP/1.1",
        b"GET  HTTP/1.1",
        b"GET x HTTP/1.1",
        b"GET ?x HTTP/1.1",
        b"GET h/x HTTP/1.1",
        b"GET * HTTP/1.1",
        b"OPTIONS ** HTTP/1.1",
        b"GET h:80 HTTP/1.1",
        b"GET \\x HTTP/1.1",
        b"GET http:/x HTTP/1.1",
        b"GET http:x HTTP/1.1",
        b"GET http:// HTTP/1.1",
        b"GET http:///x HTTP/1.1",
        b"GET http://u@h/ HTTP/1.1",
        b"GET http://u:p@h/ HTTP/1.1",
        b"GET http://h:x/ HTTP/1.1",
        b"GET http://a,b/ HTTP/1.1",
        b"GET http://h\\@x/ HTTP/1.1",
        b"GET ftp://h/ HTTP/1.1",
        b"GET file:///etc HTTP/1.1",
        b"GET http://h#x HTTP/1.1",
        b"GET http://h:99999/ HTTP/1.1",
        b"CONNECT / HTTP/1.1",
        b"CONNECT h HTTP/1.1",
        b"CONNECT h: HTTP/1.1",
        b"CONNECT h:x HTTP/1.1",
        b"CONNECT http://h:80/ HTTP/1.1",
        b"CONNECT u@h:80 HTTP/1.1",
        b"CONNECT [::1] HTTP/1.1",
        b"CONNECT * HTTP/1.1",
        b"CONNECT :80 HTTP/1.1",
        b"GET / http/1.1",
        b"GET / HTTP/1.1x",
        b"GET / HTTP/11",
        b"GET / HTTP/1,1",
        b"GET / HTTP/1.",
        b"GET / HTTP/.1",
        b"GET / HTTP/01.1",
        b"GET / HTTP/1.10",
        b"GET / HTTP/+1.1",
        b"GET / HTTPS/1.1",
        b"GET / RTSP/1.0",
        b"GET / HTTP /1.1",
        b"GET / HTTP/1.\xb9",
    )
}
# Host.
REFUSED_400 |= {
    f"Host {value!r}": heads(b"Host: " + value, start=b"GET / HTTP/1.1", host=False)
    for value in (
        b"",
        b"a b",
        b"a\tb",
        b"a,b",
        b"a, a",
        b"u@a",
        b"u:p@a",
        b"a/b",
        b"/",
        b"a?b",
        b"a#b",
        b"http://a",
        b"a\\b",
        b"a:b",
        b"a:80:80",
        b"a:-1",
        b"a:+80",
        b"a:99999",
        b"a:080808",
        b":80",
        b"[",
        b"[]",
        b"[::1",
        b"::1",
        b"[::1]x",
        b"[::1]:x",
        b"[g::1]",
        b"[::1%25eth0]",
        b"[1.2.3.4]",
        b"a\x00",
        b"\xe9",
        b"a;b",
        b"a'b",
        b"a<b>",
        b'"a"',
        b"a%00",
        b"a|b",
        b"{a}",
        b"a^b",
        b"a`b",
        b"a\x7f",
        b"a" * 300,
    )
}
REFUSED_400 |= {
    "no Host": b"GET / HTTP/1.1\r\n\r\n",
    "no Host, but in the target": b"GET http://h/ HTTP/1.1\r\n\r\n",
    "Host twice": heads(b"Host: h"),
    "Host twice, differing": heads(b"Host: other"),
    "Host and an empty Host": heads(b"Host:"),
    "Host twice in 1.0": heads(b"Host: h", start=b"GET / HTTP/1.0"),
    "Host : value": b"GET / HTTP/1.1\r\nHost : h\r\n\r\n",
    "folded Host": b"GET / HTTP/1.1\r\nHost:\r\n h\r\n\r\n",
    "TRACE with a length": heads(b"Content-Length: 3", start=b"TRACE / HTTP/1.1") + b"abc",
    "TRACE with chunks": heads(b"Transfer-Encoding: chunked", start=b"TRACE / HTTP/1.1") + ONE_CHUNK,
    "a bad Host beside an absolute target": b"GET http://h/ HTTP/1.1\r\nHost: a b\r\n\r\n",
}


@pytest.mark.parametrize("data", REFUSED_400.values(), ids=REFUSED_400.keys())
def test_refused(data):
    assert outcome(data + SMUGGLED) == [400]
    assert outcome(*(bytes((octet,)) for octet in data + SMUGGLED)) == [400]


REFUSED_OTHERWISE = {
    "TE gzip, chunked": (heads(b"Transfer-Encoding: gzip, chunked") + ONE_CHUNK, 501),
    "TE gzip and TE chunked": (heads(b"Transfer-Encoding: gzip", b"Transfer-Encoding: chunked") + ONE_CHUNK, 501),
    "HTTP/1.2": (heads(start=b"GET / HTTP/1.2"), 505),
    "HTTP/2.0": (heads(start=b"GET / HTTP/2.0"), 505),
    "HTTP/0.9": (heads(start=b"GET / HTTP/0.9"), 505),
    "a method longer than any": (heads(start=b"M" * 65 + b" / HTTP/1.1"), 501),
    "preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    "Expect": (heads(b"Expect: 100-continue, x", b"Content-Length: 0"), 417),
    "Expect twice": (heads(b"Expect: 100-continue", b"Expect: 100-continue"), 417),
}


@pytest.mark.parametrize(("data", "status"), REFUSED_OTHERWISE.values(), ids=REFUSED_OTHERWISE.keys())
def test_refused_otherwise(data, status):
    assert outcome(data + SMUGGLED) == [status]


# Chunked bodies that go wrong: the request has begun, and nothing behind the fault is read. The body is what came
# before it.
BAD_CHUNKS = {
    f"chunk {line!r}": (line + b"\r\nx\r\n0\r\n\r\n", b"")
    for line in (
        b"",
        b" 1",
        b"1 ",
        b"\t1",
        b"1\t",
        b"+1",
        b"-1",
        b"0x1",
        b"1_0",
        b"x",
        b"g",
        b"1h",
        b"\x001",
        b"1\x00",
        b"1\x0b",
        b"1.0",
        b"1,1",
        b"1 1",
        b"00000000000000001",
        b"8000000000000000",
        b"ffffffffffffffff",
        b"FFFFFFFFFFFFFFFFF",
        b"\xef\xbc\x91",
        b"1 ;a",
        b"1 ;a",
        b"1; ",
        b"1;a ",
        b"1;a= ",
        b"1;",
        b"1;;a",
        b"1;a=",
        b"1;=b",
        b"1;a b",
        b'1;a="b',
        b'1;a="b"c',
        b"1;a\x00",
        b"1;a=\x7f",
        b"1;a\nb",
        b"1\n",
        b"1\r",
        b"1;a\r",
        b'1;a="\n"',
        b'1;a="\r"',
        b"1;" + b"a" * 1100,
    )
}
BAD_CHUNKS |= {
    "LF after the size": (b"1\nx\r\n0\r\n\r\n", b""),
    "CR after the size": (b"1\rx\r\n0\r\n\r\n", b""),
    "LF after an extension": (b"1;a\nx\r\n0\r\n\r\n", b""),
    "LF after data": (b"1\r\nx\n0\r\n\r\n", b"x"),
    "CR after data": (b"1\r\nx\r0\r\n\r\n", b"x"),
    "LF CR after data": (b"1\r\nx\n\r0\r\n\r\n", b"x"),
    "nothing after data": (b"1\r\nx0\r\n\r\n", b"x"),
    "data longer than said": (b"1\r\nxy\r\n0\r\n\r\n", b"x"),
    "data shorter than said": (b"6\r\nx\r\n0\r\n\r\n", b"x\r\n0\r\n"),
    "size that wraps 64 bits": (b"10000000000000001\r\nx\r\n0\r\n\r\n", b""),
    "an empty line for a size": (b"1\r\nx\r\n\r\n0\r\n\r\n", b"x"),
    "LF after the last chunk": (b"0\n\r\n", b""),
    "LF ends the trailers": (b"0\r\n\n", b""),
    "CR ends the trailers": (b"0\r\n\r", b""),
    "LF in trailers": (b"0\r\nA: b\n\r\n\r\n", b""),
    "bare CR in trailers": (b"0\r\nA: b\rC: d\r\n\r\n", b""),
    "folded trailer": (b"0\r\nA: b\r\n c\r\n\r\n", b""),
    "space before the colon in trailers": (b"0\r\nA : b\r\n\r\n", b""),
    "trailer without a colon": (b"0\r\nGET / HTTP/1.1\r\n\r\n", b""),
    "trailer without a name": (b"0\r\n: b\r\n\r\n", b""),
    "NUL in trailers": (b"0\r\nA: \x00\r\n\r\n", b""),
    "a request as a trailer": (b"0\r\nGET /evil HTTP/1.1\r\nHost: h\r\n\r\n", b""),
    "too many trailers": (b"0\r\n" + b"a: b\r\n" * 129 + b"\r\n", b""),
    "too large trailers": (b"0\r\na: " + b"b" * 70000 + b"\r\n\r\n", b""),
    "too many extensions": ((b"1;" + b"a" * 1000 + b"\r\nx\r\n") * 17, b"x" * 16),
}


@pytest.mark.parametrize(("body", "read"), BAD_CHUNKS.values(), ids=BAD_CHUNKS.keys())
def test_bad_chunks(body, read):
    data = chunked(body) + SMUGGLED
    assert outcome(data) == [(*POST, read), 400]
    if len(data) < 500:
        assert outcome(*(data[i : i + 1] for i in range(len(data)))) == [(*POST, read), 400]


ACCEPTED = {
    "CL.0 body is the next request": (heads(b"Content-Length: 0") + SMUGGLED, [(*POST, b""), EVIL]),
    "no length is no body": (heads() + SMUGGLED, [(*POST, b""), EVIL]),
    "GET with a body": (heads(b"Content-Length: 3", start=b"GET /x HTTP/1.1") + b"abc", [(b"GET", b"/x", b"abc")]),
    "a body that looks like a request": (
        heads(b"Content-Length: %d" % len(SMUGGLED)) + SMUGGLED + SMUGGLED,
        [(*POST, SMUGGLED), EVIL],
    ),
    "leading zeros": (heads(b"Content-Length: 0005") + b"hello" + SMUGGLED, [(*POST, b"hello"), EVIL]),
    "white space around a length": (heads(b"Content-Length:\t 5 \t") + b"hello", [(*POST, b"hello")]),
    "no white space": (heads(b"Content-Length:5") + b"hello", [(*POST, b"hello")]),
    "TE in another case": (heads(b"TRANSFER-encoding:CHUNKED") + ONE_CHUNK + SMUGGLED, [(*POST, b"x"), EVIL]),
    "TE tab": (heads(b"Transfer-Encoding:\tchunked \t") + ONE_CHUNK, [(*POST, b"x")]),
    "chunks": (chunked(b"2\r\nab\r\nA\r\n0123456789\r\n0\r\n\r\n") + SMUGGLED, [(*POST, b"ab0123456789"), EVIL]),
    "leading zeros of a chunk": (chunked(b"0001\r\nx\r\n0000\r\n\r\n") + SMUGGLED, [(*POST, b"x"), EVIL]),
    "a chunk that looks like the last one": (chunked(b"5\r\n0\r\n\r\n\r\n0\r\n\r\n"), [(*POST, b"0\r\n\r\n")]),
    "bad white space in extensions": (chunked(b'1; a\t= "b" ; c\r\nx\r\n0\r\n\r\n'), [(*POST, b"x")]),
    "extensions": (chunked(b'1;a;b=c;d="e;\\"\r"\r\nx\r\n0;a\r\n\r\n'.replace(b'\r"', b'"')), [(*POST, b"x")]),
    "trailers": (chunked(b"0\r\nContent-Length: 5\r\nHost: x\r\nA: b\r\n\r\n") + SMUGGLED, [(*POST, b""), EVIL]),
    "similar names are other fields": (
        heads(b"X-Content-Length: 5", b"Content-Lengths: 6", b"Transfer-Encodin: chunked", b"XTransfer-Encoding: x"),
        [(*POST, b"")],
    ),
    "one empty line first": (b"\r\n" + SMUGGLED, [EVIL]),
    "the empty line of a careless client": (heads(b"Content-Length: 1") + b"x\r\n" + SMUGGLED, [(*POST, b"x"), EVIL]),
    "Host differs from an absolute target": (heads(start=b"GET http://other/x HTTP/1.1"), [(b"GET", b"/x", b"")]),
    "Expect in 1.0": (heads(b"Expect: x", b"Connection: keep-alive", start=b"GET / HTTP/1.0"), [(b"GET", b"/", b"")]),
    "nothing after close": (heads(b"Connection: close") + SMUGGLED, [(*POST, b"")]),
    "nothing after 1.0": (heads(start=b"GET / HTTP/1.0") + SMUGGLED, [(b"GET", b"/", b"")]),
    "obs-text": (heads(b"A: \xe9\x80\xff"), [(*POST, b"")]),
    "h2c is not offered on": (
        heads(b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c") + SMUGGLED,
        [(*POST, b""), EVIL],
    ),
}


@pytest.mark.parametrize(("data", "requests"), ACCEPTED.values(), ids=ACCEPTED.keys())
def test_one_reading(data, requests):
    assert outcome(data) == requests
    assert outcome(*(data[i : i + 1] for i in range(len(data)))) == requests


@pytest.mark.parametrize("octet", [o for o in range(256) if not 0x21 <= o <= 0x7E or o == 0x23])
def test_octets_refused_in_a_target(octet):
    assert outcome(heads(start=b"GET /a%cb HTTP/1.1" % octet)) == [400]
    assert outcome(heads(start=b"PROPFIND /a%cb HTTP/1.1" % octet)) == [400]


def test_octets_of_a_field_name():
    token = b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
    for octet in range(256):
        accepted = outcome(heads(b"A%cb: c" % octet)) != [400]
        assert accepted == (octet in token or octet == 0x3A), octet


def test_octets_of_a_field_value():
    for octet in range(256):
        accepted = outcome(heads(b"A: b%cc" % octet)) != [400]
        assert accepted == (octet == 9 or (octet >= 32 and octet != 127)), octet


# What never passes, in whatever shape it came.


@pytest.mark.parametrize(
    "line",
    [
        b"Transfer-Encoding: chunked",
        b"Connection: x-y",
        b"Keep-Alive: 1",
        b"Proxy-Connection: close",
        b"TE: trailers",
        b"Upgrade: h2c",
        b"HTTP2-Settings: AAMAAABk",
        b"Expect: 100-continue",
        b"Content-Length: 0",
        b"x_forwarded_for: 1.2.3.4",
        b"X_Real_IP: 1.2.3.4",
    ],
)
def test_what_means_one_hop_does_not_pass(line):
    (event, *_) = H1ServerCodec(H1Limits()).receive(heads(line))
    assert event.head.fields == []


def test_what_is_forwarded_has_one_reading():
    """A request that came chunked, upgraded and nominated goes out with our framing and none of the client's."""
    server, client = H1ServerCodec(H1Limits()), H1ClientCodec(H1Limits())
    (event, *_) = server.receive(
        chunked(b"")[:-2] + b"Connection: x-a, te\r\nTE: trailers\r\nX-A: b\r\nUpgrade: x\r\n\r\n"
    )
    assert isinstance(event.head, RequestHead)
    client.send_headers(client.open_stream(), event.head, event.end)
    assert client.data_to_send() == (
        b"POST / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\nte: trailers\r\nconnection: te\r\n\r\n"
    )


# Responses: an upstream can smuggle as well.
BAD_RESPONSES = {
    "CL.TE": (b"Content-Length: 1", b"Transfer-Encoding: chunked"),
    "TE.CL": (b"Transfer-Encoding: chunked", b"Content-Length: 1"),
    "CL.CL": (b"Content-Length: 1", b"Content-Length: 2"),
    "CL list": (b"Content-Length: 1, 2",),
    "CL sign": (b"Content-Length: +1",),
    "TE twice": (b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"),
    "TE xchunked": (b"Transfer-Encoding: xchunked",),
    "TE control": (b"Transfer-Encoding: \x0bchunked",),
    "space before the colon": (b"Content-Length : 1",),
    "folded": (b"Content-Length: 1", b" 0"),
    "bare CR": (b"A: b\rContent-Length: 1",),
    "bare LF": (b"A: b\nContent-Length: 1",),
    "NUL": (b"A: \x00",),
}


@pytest.mark.parametrize("lines", BAD_RESPONSES.values(), ids=BAD_RESPONSES.keys())
def test_bad_responses(lines):
    codec = H1ClientCodec(H1Limits())
    codec.send_headers(codec.open_stream(), RequestHead(b"GET", b"/", b"h", [], {}), True)
    (event,) = codec.receive(b"\r\n".join((b"HTTP/1.1 200 OK", *lines, b"", b"")) + ONE_CHUNK)
    assert isinstance(event, StreamReset)
    assert event.error.kind is Kind.BAD_RESPONSE
    assert codec.closing


# llhttp as a second opinion: what it refuses in field lines, we refuse.

LINES = st.lists(
    st.builds(
        b"".join,
        st.tuples(
            st.sampled_from([b"A", b"a-B", b"Content-Length", b"Transfer-Encoding", b"x y", b"", b" a", b"\xe9"]),
            st.sampled_from([b":", b": ", b" : ", b"", b":\t", b"\r\n: "]),
            st.sampled_from(
                [b"b", b"", b"5", b"chunked", b"b c", b"\x00", b"\x7f", b"\r", b"\n x", b"\r\n y", b"\xff"]
            ),
            st.sampled_from([b"", b" ", b"  ", b"\x0b"]),  # llhttp takes no tab behind `chunked`, which is legal
        ),
    ),
    max_size=4,
)


@given(lines=LINES, end=st.sampled_from([b"\r\n", b"\r\n", b"\r\n", b"\n", b"\r"]))
@settings(max_examples=400, deadline=None)
def test_llhttp_accepts_what_is_accepted(lines, end):
    data = heads(*lines, end=end)
    (event, *_) = H1ServerCodec(H1Limits()).receive(data) or (None,)
    if not isinstance(event, HeadersReceived):
        return
    read = []

    class Callbacks:
        def on_header(self, name, value):
            read.append((name.lower(), value.rstrip(b" \t")))

    head, end_of_head, _ = data.partition(b"\r\n\r\n")
    httptools.HttpRequestParser(Callbacks()).feed_data(head + end_of_head)
    framing = (b"host", b"content-length", b"transfer-encoding")
    assert event.head.fields == [field for field in read if field[0] not in framing]
