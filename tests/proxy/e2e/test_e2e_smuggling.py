"""Attacks on framing, judged where they would do harm: at an origin that records every octet.

Each row is what a client sends. Either nothing is forwarded, and the client gets an error and a close; or exactly what
the row says is forwarded, unambiguously, and nothing of it is ever read as another request.
"""

from __future__ import annotations

import asyncio

import pytest

from .harness import OK, Client, Message, Origin, OriginPeer, Proxy, raw, wait_for

pytestmark = pytest.mark.asyncio(loop_scope="module")

H = b"Host: a.test\r\n"
EVIL = b"GET /evil HTTP/1.1\r\nHost: a.test\r\n\r\n"
ZERO = b"0\r\n\r\n"
TE = b"Transfer-Encoding: chunked\r\n"


def post(fields: bytes, body: bytes = ZERO + EVIL, version: bytes = b"HTTP/1.1") -> bytes:
    return b"POST / " + version + b"\r\n" + H + fields + b"\r\n" + body


def te(value: bytes) -> bytes:
    return post(b"Transfer-Encoding: " + value + b"\r\n")


def cl(value: bytes, body: bytes = b"abc" + EVIL) -> bytes:
    return post(b"Content-Length: " + value + b"\r\n", body)


def chunked(body: bytes) -> bytes:
    return post(TE, body)


REFUSED: dict[str, bytes] = {
    # Both lengths, in either order and number.
    "cl.te": post(b"Content-Length: 6\r\n" + TE),
    "te.cl": post(TE + b"Content-Length: 6\r\n"),
    "cl0.te": post(b"Content-Length: 0\r\n" + TE),
    "te.cl0": post(TE + b"Content-Length: 0\r\n"),
    "te.cl equal": post(TE + b"Content-Length: 5\r\n", ZERO),
    "cl.te identity": post(b"Content-Length: 3\r\nTransfer-Encoding: identity\r\n", b"abc" + EVIL),
    "cl.te empty": post(b"Content-Length: 3\r\nTransfer-Encoding:\r\n", b"abc" + EVIL),
    "cl.te unknown": post(b"Content-Length: 3\r\nTransfer-Encoding: x\r\n", b"abc" + EVIL),
    "cl.te get": b"GET / HTTP/1.1\r\n" + H + b"Content-Length: 6\r\n" + TE + b"\r\n" + ZERO + EVIL,
    "cl bad.te": post(b"Content-Length: x\r\n" + TE),
    "cl empty.te": post(b"Content-Length:\r\n" + TE),
    "te in 1.0": post(TE, version=b"HTTP/1.0"),
    "te.cl in 1.0": post(TE + b"Content-Length: 6\r\n", version=b"HTTP/1.0"),
    "te keep-alive in 1.0": post(TE + b"Connection: keep-alive\r\n", version=b"HTTP/1.0"),
    # Two lengths.
    "two cl": post(b"Content-Length: 3\r\nContent-Length: 4\r\n", b"abc" + EVIL),
    "two cl 0 first": post(b"Content-Length: 0\r\nContent-Length: 44\r\n", EVIL),
    "cl list": cl(b"3, 4"),
    "cl list no space": cl(b"3,4"),
    "cl list empty": cl(b"3,"),
    "cl list before": cl(b",3"),
    "cl and ws cl": post(b"Content-Length: 3\r\n Content-Length: 9\r\n", b"abc" + EVIL),
    # Values of Content-Length.
    **{
        f"cl {value!r}": cl(value)
        for value in (
            b"+3", b"-3", b"-0", b"+0", b"3 3", b"3\t4", b"0x3", b"0b11", b"3.0", b"3e0", b"1_0", b"3;", b"'3'",
            b'"3"', b"three", b"", b" ", b"\xb3", b"3\x0b", b"3\x0c", b"3\x00", b"\x003", b"3\x85", b"\xa03",
            b"99999999999999999999", b"18446744073709551619", b"9223372036854775808", b"4294967296000000000000003",
            b"3 abc", b"3\x1f", b"Content-Length: 3", b"3\r", b"3\rX: y",
        )
    },
    # Values of Transfer-Encoding.
    **{
        f"te {value!r}": te(value)
        for value in (
            b"", b"identity", b"chunked, identity", b"identity, chunked", b"chunked, chunked", b"chunked,chunked",
            b"chunked chunked", b"xchunked", b"chunkedx", b"x chunked", b"chunke", b"chunked;q=1", b"chunked;",
            b"chunked; a=b", b"\"chunked\"", b"'chunked'", b"chunked, gzip", b"gzip", b"gzip chunked", b"chunked,",
            b",chunked", b", chunked", b"chunked , ", b"\x0bchunked", b"chunked\x0b", b"\x0cchunked",
            b"chunked\x0c", b"chunked\x00", b"\x00chunked", b"chun\x00ked", b"chunked\x7f", b"\xa0chunked",
            b"chunked\xa0", b"\xffchunked", b"c\xc4\xa5unked", b"chun ked", b"chunked\r", b"\rchunked",
            b"chunked\rX: y", b"deflate, chunked", b"gzip, chunked", b"cow, chunked", b"cow", b"chunked\tx",
            b"compress", b"chunked, cow", b"trailers", b"{chunked}", b"c=hunked", b"chunked#", b"chunk\xc3\xa9d",
            b"0",
        )
    },
    "two te": post(TE + TE),
    "te then identity": post(TE + b"Transfer-Encoding: identity\r\n"),
    "identity then te": post(b"Transfer-Encoding: identity\r\n" + TE),
    "te then cow": post(TE + b"Transfer-Encoding: cow\r\n"),
    "te then empty": post(TE + b"Transfer-Encoding:\r\n"),
    "te folded": post(b"Transfer-Encoding:\r\n chunked\r\n"),
    "te folded tab": post(b"Transfer-Encoding:\r\n\tchunked\r\n"),
    "te folded half": post(b"Transfer-Encoding: chun\r\n ked\r\n"),
    # Names.
    **{
        f"name {name!r}": post(name + b": chunked\r\nContent-Length: 5\r\n", ZERO + EVIL)
        for name in (
            b"Transfer-Encoding ", b"Transfer-Encoding\t", b" Transfer-Encoding", b"\tTransfer-Encoding",
            b"Transfer-Encoding\x0b", b"Transfer-Encoding\x00", b"\x00Transfer-Encoding", b"Transfer\x00-Encoding",
            b"Transfer Encoding", b"Transfer-Encoding\r", b"X: y\rTransfer-Encoding", b"X: y\nTransfer-Encoding",
            b"Transfer-Enc\xc3\xb6ding", b"Transfer-Encoding\xa0", b"\xefTransfer-Encoding",
            b"Transfer-Encoding\x1f", b"Transfer_Encoding", b"transfer_encoding", b"TRANSFER_ENCODING",
            b"(Transfer-Encoding)", b"Transfer-Encoding:", b"\"Transfer-Encoding\"", b"Transfer-Encoding=",
            b"Transfer-Encoding\\", b"Transfer-Encoding,", b"@Transfer-Encoding", b"[Transfer-Encoding]",
            b"Transfer-Encoding\x7f",
        )
        if name != b"Transfer-Encoding:"
    },
    **{
        f"cl name {name!r}": post(name + b": 3\r\n", b"abc" + EVIL)
        for name in (
            b"Content-Length ", b"Content-Length\t", b" Content-Length", b"\tContent-Length", b"Content Length",
            b"Content-Length\x00", b"Content_Length", b"CONTENT_LENGTH", b"Content-Length\x0b",
            b"Content-Length\x7f", b"\xc2\xa0Content-Length", b"Content-Length\r",
        )
    },
    "te colon colon": post(b"Transfer-Encoding:: chunked\r\n"),
    "no name": post(b": chunked\r\n"),
    "no colon": post(b"Transfer-Encoding chunked\r\n"),
    "no colon at all": post(b"x\r\n"),
    "field is a space": post(b" \r\n"),
    "connection names cl": post(b"Connection: Content-Length\r\nContent-Length: 3\r\n", b"abc" + EVIL),
    "connection names te": post(b"Connection: Transfer-Encoding\r\n" + TE),
    "connection names host": post(b"Connection: close, Host\r\nContent-Length: 0\r\n", b""),
    # Line ends.
    "lf request line": b"POST / HTTP/1.1\n" + H + TE + b"\r\n" + ZERO + EVIL,
    "lf field": b"POST / HTTP/1.1\r\nHost: a.test\n" + TE + b"\r\n" + ZERO + EVIL,
    "lf only": b"POST / HTTP/1.1\nHost: a.test\nContent-Length: 0\n\n" + EVIL,
    "lf lf end": b"POST / HTTP/1.1\r\n" + H + b"Content-Length: 0\r\n\n" + EVIL,
    "crlf lf end": b"POST / HTTP/1.1\r\n" + H + b"Content-Length: 0\n\r\n" + EVIL,
    "cr only": b"POST / HTTP/1.1\rHost: a.test\rContent-Length: 0\r\r" + EVIL,
    "cr cr lf": b"POST / HTTP/1.1\r\r\n" + H + b"\r\n" + EVIL,
    "cr cr lf end": b"POST / HTTP/1.1\r\n" + H + b"Content-Length: 0\r\n\r\r\n" + EVIL,
    "lf cr": b"POST / HTTP/1.1\n\r" + H + b"\n\r" + EVIL,
    "bare lf in value": post(b"X: a\nContent-Length: 44\r\n", EVIL),
    "bare cr in value": post(b"X: a\rContent-Length: 44\r\n", EVIL),
    "nul in value": post(b"X: a\x00b\r\nContent-Length: 0\r\n", EVIL),
    "vt in value": post(b"X: a\x0bb\r\nContent-Length: 0\r\n", EVIL),
    "del in value": post(b"X: a\x7fb\r\nContent-Length: 0\r\n", EVIL),
    "esc in value": post(b"X: a\x1bb\r\nContent-Length: 0\r\n", EVIL),
    "fold": post(b"X: a\r\n Content-Length: 44\r\n", EVIL),
    "fold tab": post(b"X: a\r\n\tb\r\nContent-Length: 0\r\n", EVIL),
    "fold first": b"POST / HTTP/1.1\r\n Host: b.test\r\n" + H + b"Content-Length: 0\r\n\r\n" + EVIL,
    "fold of host": b"POST / HTTP/1.1\r\nHost: a.test\r\n .evil\r\nContent-Length: 0\r\n\r\n" + EVIL,
    "fold empty": post(b"X: a\r\n \r\nContent-Length: 0\r\n", EVIL),
    "lf before request": b"\n" + post(b"Content-Length: 0\r\n", b""),
    "cr before request": b"\r" + post(b"Content-Length: 0\r\n", b""),
    "space before request": b" " + post(b"Content-Length: 0\r\n", b""),
    "nul before request": b"\x00" + post(b"Content-Length: 0\r\n", b""),
    "many crlf before request": b"\r\n" * 50 + post(b"Content-Length: 0\r\n", b""),
    # Request lines.
    "two targets": b"GET / /evil HTTP/1.1\r\n" + H + b"\r\n",
    "lf in target": b"GET /\nX HTTP/1.1\r\n" + H + b"\r\n",
    "crlf in target": b"GET / HTTP/1.1\r\nx: y HTTP/1.1\r\n \r\n" + H + b"\r\n",
    "tab separators": b"GET\t/\tHTTP/1.1\r\n" + H + b"\r\n",
    "vt separator": b"GET\x0b/ HTTP/1.1\r\n" + H + b"\r\n",
    "ff separator": b"GET /\x0cHTTP/1.1\r\n" + H + b"\r\n",
    "nbsp separator": b"GET\xa0/ HTTP/1.1\r\n" + H + b"\r\n",
    "no version": b"GET /\r\n" + H + b"\r\n",
    "version 1.1.1": b"GET / HTTP/1.1.1\r\n" + H + b"\r\n",
    "version 1.": b"GET / HTTP/1.\r\n" + H + b"\r\n",
    "version 01.1": b"GET / HTTP/01.1\r\n" + H + b"\r\n",
    "version +1.1": b"GET / HTTP/+1.1\r\n" + H + b"\r\n",
    "version HTTPS": b"GET / HTTPS/1.1\r\n" + H + b"\r\n",
    "version space": b"GET / HTTP/ 1.1\r\n" + H + b"\r\n",
    "method colon": b"GET: / HTTP/1.1\r\n" + H + b"\r\n",
    "method brackets": b"[GET] / HTTP/1.1\r\n" + H + b"\r\n",
    "method comma": b"GET,POST / HTTP/1.1\r\n" + H + b"\r\n",
    "method nul": b"GE\x00T / HTTP/1.1\r\n" + H + b"\r\n",
    "method empty": b" / HTTP/1.1\r\n" + H + b"\r\n",
    "pri 1.1": b"PRI * HTTP/1.1\r\n" + H + b"\r\n" + EVIL,
    "absolute other scheme": b"GET gopher://a.test/ HTTP/1.1\r\n" + H + b"\r\n",
    "absolute userinfo": b"GET http://x@a.test/ HTTP/1.1\r\n" + H + b"\r\n",
    "absolute backslash": b"GET http://a.test\\@b.test/ HTTP/1.1\r\n" + H + b"\r\n",
    "absolute no host": b"GET http:///x HTTP/1.1\r\n" + H + b"\r\n",
    "absolute one slash": b"GET http:/x HTTP/1.1\r\n" + H + b"\r\n",
    "fragment": b"GET /#x HTTP/1.1\r\n" + H + b"\r\n",
    "target utf8": b"GET /\xc3\xa9 HTTP/1.1\r\n" + H + b"\r\n",
    "target authority": b"GET a.test:80 HTTP/1.1\r\n" + H + b"\r\n",
    "target star": b"POST * HTTP/1.1\r\n" + H + b"Content-Length: 0\r\n\r\n",
    "connect with cl": b"CONNECT a.test:80 HTTP/1.1\r\nHost: a.test:80\r\nContent-Length: 3\r\n\r\nabc" + EVIL,
    "connect with te": b"CONNECT a.test:80 HTTP/1.1\r\nHost: a.test:80\r\n" + TE + b"\r\n" + ZERO + EVIL,
    # Host.
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "two hosts": b"GET / HTTP/1.1\r\nHost: a.test\r\nHost: b.test\r\n\r\n",
    "two equal hosts": b"GET / HTTP/1.1\r\nHost: a.test\r\nHost: a.test\r\n\r\n",
    "host ws colon": b"GET / HTTP/1.1\r\nHost : a.test\r\n\r\n",
    "host and ws host": b"GET / HTTP/1.1\r\nHost: a.test\r\n Host: b.test\r\n\r\n",
    "host with path": b"GET / HTTP/1.1\r\nHost: a.test/evil\r\n\r\n",
    "host list": b"GET / HTTP/1.1\r\nHost: a.test,b.test\r\n\r\n",
    "host nul": b"GET / HTTP/1.1\r\nHost: a.test\x00.b\r\n\r\n",
    "host space": b"GET / HTTP/1.1\r\nHost: a.test b\r\n\r\n",
    "host tab": b"GET / HTTP/1.1\r\nHost: a.test\tb\r\n\r\n",
    "host userinfo": b"GET / HTTP/1.1\r\nHost: u@a.test\r\n\r\n",
    "host port letters": b"GET / HTTP/1.1\r\nHost: a.test:80evil\r\n\r\n",
    "host port sign": b"GET / HTTP/1.1\r\nHost: a.test:+80\r\n\r\n",
    "host quote": b"GET / HTTP/1.1\r\nHost: a\"b\r\n\r\n",
    "host percent": b"GET / HTTP/1.1\r\nHost: a%00.test\r\n\r\n",
    "host two in absolute": b"GET http://a.test/ HTTP/1.1\r\nHost: a.test\r\nHost: b.test\r\n\r\n",
    "host in 1.0 twice": b"GET / HTTP/1.0\r\nHost: a.test\r\nHost: b.test\r\n\r\n",
    # Heads that come with bodies nobody announced are the next request: that one is bad.
}  # fmt: skip

CHUNKS_REFUSED: dict[str, bytes] = {
    **{
        f"size {size!r}": size + b"\r\nabc\r\n" + ZERO + EVIL
        for size in (
            b"", b"0x3", b"+3", b"-3", b" 3", b"3 ", b"\t3", b"3\t", b"3g", b"g", b"3_0", b"3,", b"3 3", b"03h",
            b"\x003", b"3\x00", b"3\x0b", b"3\xa0", b"\xef\xbc\x93", b"3.", b"3;a=\x00", b"3;a=b\x7f", b"3;a=\"b",
            b"3;a=b\"", b"3;;", b"3;", b"3;=b", b"3;a=", b"3;a b", b"3;a=b c", b"3;a=b\nX", b"3;a\rb", b"3\rX",
            b"3\nabc", b"f" * 17, b"0" * 17 + b"3", b"ffffffffffffffff", b"8000000000000000", b"10000000000000003",
            b"-0", b"3,3", b"'3'", b"{3}", b"0X3", b"3h", b"\r3", b"\n3",
        )
    },
    "lf after size": b"3\nabc\r\n" + ZERO + EVIL,
    "cr after size": b"3\rabc\r\n" + ZERO + EVIL,
    "lf after data": b"3\r\nabc\n" + ZERO + EVIL,
    "cr after data": b"3\r\nabc\r" + ZERO + EVIL,
    "nothing after data": b"3\r\nabc" + ZERO + EVIL,
    "two octets after data": b"3\r\nabcXX" + ZERO + EVIL,
    "data too long": b"3\r\nabcd\r\n" + ZERO + EVIL,
    "lf after last": b"3\r\nabc\r\n0\n\r\n" + EVIL,
    "lf lf at the end": b"3\r\nabc\r\n0\r\n\n" + EVIL,
    "lf twice at the end": b"3\r\nabc\r\n0\n\n" + EVIL,
    "cr cr at the end": b"3\r\nabc\r\n0\r\n\r\r\n" + EVIL,
    "no end": b"3\r\nabc\r\n0\r\n" + EVIL,
    "trailer fold": b"0\r\nx: a\r\n b\r\n\r\n" + EVIL,
    "trailer no colon": b"0\r\nx\r\n\r\n" + EVIL,
    "trailer ws colon": b"0\r\nx : y\r\n\r\n" + EVIL,
    "trailer lf": b"0\r\nx: y\n\r\n" + EVIL,
    "trailer cr": b"0\r\nx: y\rz: a\r\n\r\n" + EVIL,
    "trailer nul": b"0\r\nx: \x00\r\n\r\n" + EVIL,
    "trailer request": b"0\r\n" + EVIL,
    "extension too long": b"3;" + b"a" * 5000 + b"\r\nabc\r\n" + ZERO + EVIL,
    "extension with request": b"3;a=\"\r\n" + EVIL,
    "double crlf": b"\r\n3\r\nabc\r\n" + ZERO + EVIL,
}  # fmt: skip


async def refused(proxy: Proxy, origin: Origin, client: Client, wire: bytes, cut: bool) -> Message:
    if cut:
        half = len(wire) // 2
        await client.send_quietly(wire[: half // 2], wire[half // 2 : half], wire[half:])
    else:
        await client.send_quietly(wire)
    answer = await client.response()
    assert 400 <= answer.status < 600
    assert answer.one(b"connection") == b"close"
    await client.send_quietly(EVIL)
    assert await client.closed() == b"", "something was answered behind the refusal"
    assert not [got for got in origin.requests if b"evil" in got.raw]
    return answer


@pytest.mark.parametrize("cut", [False, True], ids=["whole", "cut"])
@pytest.mark.parametrize("wire", REFUSED.values(), ids=REFUSED.keys())
async def test_refused_head(proxy: Proxy, origin: Origin, client: Client, wire: bytes, cut: bool) -> None:
    await refused(proxy, origin, client, wire, cut)
    assert not origin.requests


# In one piece and with nothing behind it a chunked body takes a shortcut, which must be as strict.
CHUNKS_REFUSED |= {
    f"all of it, size {size!r}": size + b"\r\nabc\r\n" + ZERO
    for size in (b"0x3", b"0X3", b"0_3", b"+3", b"-3", b" 3", b"3 ", b"\t3", b"3\x0b", b"\xb3", b"\xd9\xa3", b"0o3", b"")
}  # fmt: skip


@pytest.mark.parametrize("cut", [False, True], ids=["whole", "cut"])
@pytest.mark.parametrize("body", CHUNKS_REFUSED.values(), ids=CHUNKS_REFUSED.keys())
async def test_refused_chunks(proxy: Proxy, origin: Origin, client: Client, body: bytes, cut: bool) -> None:
    answer = await refused(proxy, origin, client, chunked(body), cut)
    assert answer.status == 400
    assert not [got for got in origin.requests if got.body.endswith(b"abc")], "the origin took it for complete"


# What may be forwarded, and must then be framed without doubt. The body, or None where there is none.
FORWARDED: dict[str, tuple[bytes, bytes]] = {
    "lower case": (post(b"transfer-encoding:chunked\r\n", b"3\r\nabc\r\n" + ZERO), b"abc"),
    "upper case": (post(b"TRANSFER-ENCODING: CHUNKED\r\n", b"3\r\nabc\r\n" + ZERO), b"abc"),
    "ows": (post(b"Transfer-Encoding: \t chunked \t \r\n", b"3\r\nabc\r\n" + ZERO), b"abc"),
    "cl ows": (post(b"Content-Length: \t 3 \t \r\n", b"abc"), b"abc"),
    "cl zeroes": (post(b"Content-Length: 0003\r\n", b"abc"), b"abc"),
    "get with cl": (b"GET / HTTP/1.1\r\n" + H + b"Content-Length: 3\r\n\r\nabc", b"abc"),
    "head with chunks": (b"HEAD / HTTP/1.1\r\n" + H + TE + b"\r\n3\r\nabc\r\n" + ZERO, b"abc"),
    "body is a request": (post(b"Content-Length: %d\r\n" % len(EVIL), EVIL), EVIL),
    "chunk is a request": (chunked(b"%x\r\n" % len(EVIL) + EVIL + b"\r\n" + ZERO), EVIL),
    "extension": (chunked(b"3;a=b;c\r\nabc\r\n0;d\r\n\r\n"), b"abc"),
    "leading zeroes": (chunked(b"0000003\r\nabc\r\n0000\r\n\r\n"), b"abc"),
    "upgrade with body": (post(b"Connection: upgrade\r\nUpgrade: x\r\nContent-Length: 3\r\n", b"abc"), b"abc"),
    "x-content-length": (post(b"X-Content-Length: 99\r\nContent-Length: 3\r\n", b"abc"), b"abc"),
    "te in te": (post(b"TE: chunked\r\nContent-Length: 3\r\n", b"abc"), b"abc"),
    "trailing crlf": (post(b"Content-Length: 3\r\n", b"abc") + b"\r\n", b"abc"),
}


@pytest.mark.parametrize("cut", [False, True], ids=["whole", "cut"])
@pytest.mark.parametrize(("wire", "body"), FORWARDED.values(), ids=FORWARDED.keys())
async def test_forwarded(proxy: Proxy, origin: Origin, client: Client, wire: bytes, body: bytes, cut: bool) -> None:
    async def answer(peer: OriginPeer, got: Message) -> None:
        await peer.body(got)
        await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")

    origin.answer = answer
    parts = [wire[i : i + 7] for i in range(0, len(wire), 7)] if cut else [wire]
    await client.send(*parts)
    answered = await client.response(wire.split(b" ")[0])
    assert answered.status == 200
    assert [got.body for got in origin.requests] == [body]
    assert (await client.get(b"/next")).status == 200
    assert [got.target for got in origin.requests] == [b"/", b"/next"]


async def test_a_pipelined_prefix_is_a_request_of_its_own(proxy: Proxy, origin: Origin, client: Client) -> None:
    await client.send(post(b"Content-Length: 3\r\n", b"abcGET /x HTTP/1.1\r\nHost: a.test\r\nX: "))
    assert (await client.response()).status == 200
    await client.send(b"GET /y HTTP/1.1\r\n\r\n")
    assert (await client.response()).status == 200
    assert [got.target for got in origin.requests] == [b"/", b"/x"]
    assert origin.requests[1].one(b"x") == b"GET /y HTTP/1.1"


async def test_one_client_never_gets_into_another_ones_request(proxy: Proxy, origin: Origin) -> None:
    first, second = await proxy.connect(), await proxy.connect()
    await first.send(post(b"Content-Length: 100\r\n", b"GET /evil HTTP/1.1\r\nX: "))
    await origin.request()
    first.reset()
    assert (await second.get(b"/mine")).status == 200
    assert origin.requests[-1].target == b"/mine"
    assert origin.requests[-1].one(b"x") is None


# Responses: what the origin sends beyond an answer never reaches the next request.

MINE = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nmine"
OTHER = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil"


@pytest.mark.parametrize(
    "wire",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n" + OTHER,
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n0\r\n\r\n" + OTHER,
        b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\ncontent-length: 5\r\n\r\nmine" + OTHER,
        b"HTTP/1.1 200 OK\r\ncontent-length: 4, 5\r\n\r\nmine" + OTHER,
        b"HTTP/1.1 200 OK\r\ncontent-length: -4\r\n\r\nmine" + OTHER,
        b"HTTP/1.1 200 OK\r\ncontent-length: +4\r\n\r\nmine" + OTHER,
        b"HTTP/1.1 200 OK\r\ncontent-length: 0x4\r\n\r\nmine" + OTHER,
        b"HTTP/1.1 200 OK\r\ncontent-length: 4 4\r\n\r\nmine" + OTHER,
        b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999999999999\r\n\r\nmine" + OTHER,
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: identity\r\n\r\nmine" + OTHER,
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n" + OTHER,
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked, chunked\r\n\r\n0\r\n\r\n" + OTHER,
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: xchunked\r\ncontent-length: 4\r\n\r\nmine" + OTHER,
        b"HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n" + OTHER,
        b"HTTP/1.1 200 OK\r\ntransfer-encoding : chunked\r\ncontent-length: 4\r\n\r\nmine" + OTHER,
        b"HTTP/1.1 200 OK\r\ncontent-length : 4\r\n\r\nmine" + OTHER,
        b"HTTP/1.1 200 OK\ncontent-length: 4\n\nmine" + OTHER,
        b"HTTP/1.1 200 OK\r\nx: a\r\n content-length: 4\r\n\r\nmine" + OTHER,
        b"HTTP/1.1 200 OK\r\nx: a\ncontent-length: 0\r\n\r\n" + OTHER,
        b"HTTP/1.1 200 OK\r\nx: a\rcontent-length: 0\r\n\r\n" + OTHER,
        b"HTTP/1.1 200 OK\r\nx: \x00\r\ncontent-length: 0\r\n\r\n" + OTHER,
        b"HTTP/1.1 2000 OK\r\ncontent-length: 0\r\n\r\n" + OTHER,
        b"HTTP/1.1 20 OK\r\ncontent-length: 0\r\n\r\n" + OTHER,
        b"HTTP/1.1 099 OK\r\ncontent-length: 0\r\n\r\n" + OTHER,
        b"HTTP/1.1 +200 OK\r\ncontent-length: 0\r\n\r\n" + OTHER,
        b"HTTP/1.1  200 OK\r\ncontent-length: 0\r\n\r\n" + OTHER,
        b"HTTP/2.0 200 OK\r\ncontent-length: 0\r\n\r\n" + OTHER,
        b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n" + OTHER,
        b"\r\n" + OTHER,
        b" " + OTHER,
        b"ICY 200 OK\r\n\r\n" + OTHER,
        b"<html>" + OTHER,
    ],
)
async def test_ambiguous_responses_are_refused(proxy: Proxy, origin: Origin, client: Client, wire: bytes) -> None:
    origin.answer = raw(wire)
    answer = await client.get()
    assert answer.status == 502
    assert answer.body != b"mine"
    origin.answer = raw(MINE)
    assert (await client.get()).body == b"mine"


@pytest.mark.parametrize(
    "wire",
    [
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nmine\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0x4\r\nmine\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4 \r\nmine\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\nmine\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nminemine\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n-4\r\nmine\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nmine\r\n0\r\nbad\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n11111111111111111\r\nmine\r\n0\r\n\r\n",
    ],
)
async def test_bad_chunks_of_an_origin_cut_the_response(
    proxy: Proxy, origin: Origin, client: Client, wire: bytes
) -> None:
    origin.answer = raw(wire + OTHER)
    await client.send(b"GET / HTTP/1.1\r\n" + H + b"\r\n")
    data = await client.closed()
    if data.startswith(b"HTTP/1.1 200"):
        assert not data.endswith(b"0\r\n\r\n"), "the response was made to look complete"
    assert b"evil" not in data
    origin.answer = raw(MINE)
    assert (await (await proxy.connect()).get()).body == b"mine"


@pytest.mark.parametrize("late", [False, True], ids=["at once", "late"])
@pytest.mark.parametrize(
    ("method", "wire"),
    [
        (b"GET", MINE),
        (b"GET", b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nmine\r\n0\r\n\r\n"),
        (b"HEAD", b"HTTP/1.1 200 OK\r\ncontent-length: 400\r\n\r\n"),
        (b"GET", b"HTTP/1.1 204 No Content\r\n\r\n"),
        (b"GET", b"HTTP/1.1 304 Not Modified\r\ncontent-length: 400\r\n\r\n"),
        (b"GET", b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"),
    ],
)
@pytest.mark.parametrize("extra", [OTHER, b"\r\n", b"x", b"HTTP/1.1 100 Continue\r\n\r\n"])
async def test_leftovers_poison_the_connection(
    proxy: Proxy, origin: Origin, client: Client, method: bytes, wire: bytes, extra: bytes, late: bool
) -> None:
    done: list[str] = []

    async def answer(peer: OriginPeer, got: Message) -> None:
        await peer.send(*([wire, extra] if late else [wire + extra]))
        done.append(await peer.gone())

    origin.answer = answer
    answered = await client.ask(method + b" / HTTP/1.1\r\n" + H + b"\r\n", method=method)
    assert answered.status in (200, 204, 304)
    await wait_for(lambda: done)
    origin.answer = raw(MINE)
    assert (await client.get()).body == b"mine"
    assert (await client.get()).body == b"mine"


async def test_leftovers_meet_pipelined_requests(proxy: Proxy, origin: Origin, client: Client) -> None:
    count = 0

    async def answer(peer: OriginPeer, got: Message) -> None:
        nonlocal count
        count += 1
        own = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n%02d" % int(got.target[1:])
        await peer.send(own + (OTHER if count % 2 else b""))

    origin.answer = answer
    await client.send(b"".join(b"GET /%d HTTP/1.1\r\n%b\r\n" % (i, H) for i in range(20)))
    assert [(await client.response()).body for _ in range(20)] == [b"%02d" % i for i in range(20)]


async def test_concurrent_clients_get_their_own_answers(proxy: Proxy, origin: Origin) -> None:
    async def answer(peer: OriginPeer, got: Message) -> None:
        name = got.target[1:]
        await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(name), name))
        if name.endswith(b"7"):
            await peer.send_quietly(OTHER)

    async def run(number: int) -> None:
        client = await proxy.connect()
        for i in range(10):
            name = b"%d-%d" % (number, i)
            assert (await client.get(b"/" + name)).body == name

    origin.answer = answer
    await asyncio.gather(*(run(number) for number in range(10)))


async def test_ok(proxy: Proxy, client: Client) -> None:
    assert (await client.ask(b"GET / HTTP/1.1\r\n" + H + b"\r\n")).raw.startswith(OK[:15])
