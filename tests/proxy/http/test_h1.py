"""The HTTP/1.1 codecs, as scripts: octets received, events expected; calls made, octets expected."""

from __future__ import annotations

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.errors import Kind, ProxyError
from proxy.http.h1 import H1ClientCodec, H1Limits, H1ServerCodec
from proxy.http.h1 import request as h1_request
from proxy.http.h1 import response as h1_response
from proxy.http.message import (
    ConnectionFailed,
    DataReceived,
    HeadersReceived,
    HeadRefused,
    RequestHead,
    ResponseHead,
    StreamReset,
    TrailersReceived,
)


def shown(events):
    """Events as comparable tuples, adjacent data merged: what may depend on how octets were cut is gone."""
    out = []
    for event in events:
        match event:
            case HeadersReceived(head=RequestHead() as head):
                out.append(("request", head.method, head.target, head.authority, head.content_length, event.end))
                out.append(("fields", *head.fields))
            case HeadersReceived(head=ResponseHead() as head):
                out.append(("response", head.status, head.content_length, event.end))
                out.append(("fields", *head.fields))
            case DataReceived():
                if out and out[-1][0] == "data" and not out[-1][2]:
                    out[-1] = ("data", out[-1][1] + event.data, event.end)
                else:
                    out.append(("data", event.data, event.end))
            case TrailersReceived():
                out.append(("trailers", *event.fields))
            case HeadRefused() | StreamReset() | ConnectionFailed():
                out.append((type(event).__name__, event.error.kind))
    return out


def request(method=b"GET", target=b"/", authority=b"h", fields=(), **attributes):
    return RequestHead(method, target, authority, list(fields), {}, **attributes)


def response(status=200, fields=(), **attributes):
    return ResponseHead(status, list(fields), {}, **attributes)


def serve(data, **limits):
    """A server codec that has received `data`, and what it made of it."""
    codec = H1ServerCodec(H1Limits(**limits))
    return codec, codec.receive(data)


def asked(method=b"GET", **attributes):
    """A client codec whose request is on its way."""
    codec = H1ClientCodec(H1Limits())
    stream = codec.open_stream()
    codec.send_headers(stream, request(method, **attributes), True)
    codec.data_to_send()
    return codec


def head_of(events):
    assert isinstance(events[0], HeadersReceived)
    return events[0].head


GET = b"GET /a?b=c HTTP/1.1\r\nHost: example.com\r\n\r\n"


class TestRequests:
    def test_get(self):
        codec, events = serve(
            b"GET /a?b=c HTTP/1.1\r\nHost: example.com:8080\r\nAccept: */*\r\nX-Thing:\t one  \r\nEmpty:\r\n\r\n"
        )
        assert shown(events) == [
            ("request", b"GET", b"/a?b=c", b"example.com:8080", 0, True),
            ("fields", (b"accept", b"*/*"), (b"x-thing", b"one"), (b"empty", b"")),
        ]
        head = head_of(events)
        assert (head.scheme, head.version, head.known) == (b"http", b"1.1", {b"accept": b"*/*"})
        assert events[0].stream_id == 1
        assert not codec.closing
        assert codec.reading

    def test_body_of_known_length(self):
        _, events = serve(b"POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 5\r\n\r\nhello")
        assert shown(events) == [("request", b"POST", b"/", b"h", 5, False), ("fields",), ("data", b"hello", True)]

    def test_chunked_body_with_trailers(self):
        _, events = serve(
            b"POST / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: Chunked\r\n\r\n"
            b'5;a=b;c="d\\"e"\r\nhello\r\n0A\r\n, the rest\r\n000\r\nX-Sum: 1\r\nContent-Length: 3\r\n\r\n'
        )
        assert shown(events) == [
            ("request", b"POST", b"/", b"h", None, False),
            ("fields",),
            ("data", b"hello, the rest", False),
            ("trailers", (b"x-sum", b"1")),
        ]

    def test_only_forbidden_trailers_end_like_none(self):
        _, events = serve(b"POST / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n0\r\nhost: x\r\n\r\n")
        assert shown(events)[-1] == ("data", b"", True)

    def test_hop_by_hop_fields_do_not_pass(self):
        _, events = serve(
            b"POST / HTTP/1.1\r\nHost: h\r\nConnection: Keep-Alive, X-Hop, Via, Authorization\r\nKeep-Alive: 5\r\n"
            b"Proxy-Connection: close\r\nTE: gzip, Trailers;q=1\r\nTE: trailers\r\nX-Hop: 1\r\n"
            b"Authorization: secret\r\nContent-Length: 2\r\nExpect: 100-Continue\r\nHTTP2-Settings: x\r\n"
            b"Via: 1.1 a\r\nX_Forwarded_For: 1.2.3.4\r\n\r\n"
        )
        head = head_of(events)
        assert head.fields == [(b"authorization", b"secret"), (b"via", b"1.1 a")]
        assert head.known == {b"authorization": b"secret", b"via": b"1.1 a"}
        assert head.te_trailers
        assert head.expect_continue
        assert not head.upgrade

    def test_repeated_known_fields_are_joined(self):
        _, events = serve(b"GET / HTTP/1.1\r\nhost: h\r\nvia: a\r\nVIA: b\r\ncookie: c=1\r\ncookie: d=2\r\n\r\n")
        head = head_of(events)
        assert head.known == {b"via": b"a, b", b"cookie": b"c=1; d=2"}
        assert len(head.fields) == 4

    @pytest.mark.parametrize(
        ("line", "authority", "target"),
        [
            (b"GET http://other/x?y HTTP/1.1", b"other", b"/x?y"),
            (b"GET HTTPS://other:444 HTTP/1.1", b"other:444", b"/"),
            (b"GET http://other?y HTTP/1.1", b"other", b"/?y"),
            (b"OPTIONS * HTTP/1.1", b"h", b"*"),
            (b"OPTIONS http://other HTTP/1.1", b"other", b"*"),
            (b"CONNECT db:5432 HTTP/1.1", b"db:5432", b""),
            (b"CONNECT [::1]:5432 HTTP/1.1", b"[::1]:5432", b""),
            (b"GET //other/x HTTP/1.1", b"h", b"//other/x"),
            (b"GET /../a/%2e%2e/ HTTP/1.1", b"h", b"/../a/%2e%2e/"),
        ],
    )
    def test_target_forms(self, line, authority, target):
        _, events = serve(line + b"\r\nHost: h\r\n\r\n")
        head = head_of(events)
        assert (head.authority, head.target) == (authority, target)

    @pytest.mark.parametrize("method", [b"PROPFIND", b"get", b"X", b"M-SEARCH", b"BREW!"])
    def test_any_token_is_a_method(self, method):
        _, events = serve(method + b" / HTTP/1.1\r\nHost: h\r\n\r\n")
        assert head_of(events).method == method

    def test_pipelined_requests_wait_for_their_turn(self):
        codec, events = serve(GET + GET + GET[:10])
        assert len(events) == 1
        assert codec.receive(GET[10:]) == []
        for stream in (1, 2, 3):
            assert not codec.pending
            codec.send_headers(stream, response(204), True)
            assert codec.data_to_send() == b"HTTP/1.1 204 No Content\r\n\r\n"
            assert codec.pending == (stream < 3)
            events = codec.receive(b"") if stream < 3 else events
            assert events[0].stream_id == min(stream + 1, 3)
        assert not codec.closing

    def test_pending_is_over_when_an_unfinished_head_was_read(self):
        codec, _ = serve(GET + GET[:10])
        codec.send_headers(1, response(204), True)
        assert codec.pending
        assert codec.receive(b"") == []
        assert not codec.pending

    def test_a_connection_may_stay_idle_between_requests(self):
        codec, _ = serve(GET)
        codec.send_headers(1, response(204), True)
        assert shown(codec.receive(GET))[0][0] == "request"

    def test_empty_lines_before_a_request(self):
        assert shown(serve(b"\r\n\r\n" + GET)[1])[0][0] == "request"
        assert shown(serve(b"\r\n" * 5 + GET)[1]) == [("HeadRefused", Kind.BAD_REQUEST)]

    def test_upgrade(self):
        data = b"GET / HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: h2c, websocket\r\n\r\n"
        codec, events = serve(data + b"early")
        assert head_of(events).upgrade == b"websocket"
        assert not events[0].end
        codec.send_headers(1, response(101, upgrade=b"websocket"), False)
        codec.send_data(1, b"welcome", False)
        assert codec.data_to_send() == (
            b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nwelcome"
        )
        assert codec.pending
        assert shown(codec.receive(b"")) == [("data", b"early", False)]
        assert shown(codec.receive(b"GET")) == [("data", b"GET", False)]
        codec.send_data(1, b"bye", True)
        assert codec.data_to_send() == b"bye"
        assert codec.send_eof
        assert not codec.closing
        assert shown(codec.receive_eof()) == [("data", b"", True)]
        assert codec.closing

    def test_a_tunnel_whose_client_had_closed_already(self):
        codec, _ = serve(b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n")
        assert codec.receive(b"x") == []
        assert codec.receive_eof() == []
        codec.send_headers(1, response(200, content_length=5), False)
        assert codec.data_to_send() == b"HTTP/1.1 200 OK\r\n\r\n"
        assert codec.pending
        assert shown(codec.receive(b"")) == [("data", b"x", True)]
        codec.send_data(1, b"", True)
        assert codec.closing

    def test_a_refused_upgrade_is_an_ordinary_request(self):
        codec, _ = serve(b"GET / HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n" + GET)
        codec.send_headers(1, response(200, content_length=0), True)
        assert shown(codec.receive(b""))[0][0] == "request"

    def test_a_refused_connect_closes(self):
        codec, _ = serve(b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n" + GET)
        codec.send_headers(1, response(405), True)
        assert b"connection: close" in codec.data_to_send()
        assert codec.closing
        assert codec.receive(b"") == []

    def test_an_upgrade_with_a_body_or_without_nomination_is_ignored(self):
        data = b"POST / HTTP/1.1\r\nHost: h\r\n%bUpgrade: websocket\r\nContent-Length: 1\r\n\r\nx"
        for connection in (b"Connection: upgrade\r\n", b""):
            _, events = serve(data % connection)
            assert head_of(events).upgrade == b""
            assert events[-1].end

    def test_http_1_0(self):
        _, events = serve(b"GET / HTTP/1.0\r\nExpect: 100-continue\r\n\r\n")
        head = head_of(events)
        assert (head.version, head.authority, head.expect_continue) == (b"1.0", b"", False)


class TestRefusals:
    @pytest.mark.parametrize(
        ("data", "kind"),
        [
            (b"GET / HTTP/2.0\r\nHost: h\r\n\r\n", Kind.BAD_VERSION),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Kind.BAD_VERSION),
            (b"GET / HTTP/1.1\r\nHost: h\r\nExpect: teapot\r\n\r\n", Kind.EXPECTATION_FAILED),
            (b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", Kind.NOT_IMPLEMENTED),
            (b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 101\r\n\r\n", Kind.BODY_TOO_LARGE),
            (b"GET /" + b"a" * 500 + b" HTTP/1.1\r\nHost: h\r\n\r\n", Kind.URI_TOO_LONG),
            (b"GET /" + b"a" * 2000, Kind.URI_TOO_LONG),
            (b"GET / HTTP/1.1\r\nHost: h\r\nA: " + b"a" * 1000 + b"\r\n\r\n", Kind.HEAD_TOO_LARGE),
            (b"GET / HTTP/1.1\r\nHost: h\r\nA: " + b"a" * 1000, Kind.HEAD_TOO_LARGE),
            (b"GET / HTTP/1.1\r\nHost: h\r\n" + b"A: b\r\n" * 20 + b"\r\n", Kind.HEAD_TOO_LARGE),
            (b"GET /\r\n", Kind.BAD_REQUEST),
            (b"\x16\x03\x01\x02\x00\x01\x00", Kind.BAD_REQUEST),
        ],
    )
    def test_kinds(self, data, kind):
        codec, events = serve(data, header_bytes=900, headers=20, target_bytes=400, body_bytes=100)
        assert shown(events) == [("HeadRefused", kind)]
        assert codec.receive(GET) == []
        codec.send_headers(1, response(kind.status, content_length=2), False)
        codec.send_data(1, b"no", True)
        assert b"connection: close\r\n\r\nno" in codec.data_to_send()
        assert codec.closing

    def test_a_refused_head_request_gets_no_body(self):
        codec, _ = serve(b"HEAD / HTTP/1.1\r\n\r\n")
        codec.send_headers(1, response(400, content_length=2), False)
        codec.send_data(1, b"no", True)
        assert codec.data_to_send().endswith(b"content-length: 2\r\nconnection: close\r\n\r\n")

    def test_details_quote_the_fault(self):
        _, events = serve(b"GET / HTTP/1.1\r\nHost: h\r\nContent-Length: +5\r\n\r\n")
        assert events[0].error.details == "invalid Content-Length '+5'"
        _, events = serve(b"GET / HTTP/1.1\r\nHost: h\r\nA\x00" + b"b" * 100 + b"\r\n\r\n")
        assert "\x00" not in events[0].error.details
        assert len(events[0].error.details) < 150

    def test_a_bad_chunk_resets_and_can_be_answered(self):
        head = b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
        codec, events = serve(head + b"3\r\nabc\r\nzz\r\n" + GET)
        assert shown(events)[2:] == [("data", b"abc", False), ("StreamReset", Kind.BAD_REQUEST)]
        assert not codec.closing
        codec.send_headers(1, response(400, content_length=0), True)
        assert b"connection: close" in codec.data_to_send()
        assert codec.closing

    def test_a_bad_chunk_after_the_answer_began_closes(self):
        codec, _ = serve(b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n")
        codec.send_headers(1, response(200), False)
        assert shown(codec.receive(b"zz\r\n")) == [("StreamReset", Kind.BAD_REQUEST)]
        assert codec.closing
        codec.send_data(1, b"more", True)
        assert b"more" not in codec.data_to_send()

    def test_a_chunked_body_may_not_exceed_the_limit(self):
        _, events = serve(
            b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n3\r\nabc\r\n", body_bytes=5
        )
        assert shown(events)[2:] == [("data", b"abc", False), ("StreamReset", Kind.BODY_TOO_LARGE)]

    def test_a_small_chunked_body_may_not_exceed_the_limit(self):
        _, events = serve(
            b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n6\r\nabcdef\r\n0\r\n\r\n", body_bytes=5
        )
        assert shown(events)[2:] == [("StreamReset", Kind.BODY_TOO_LARGE)]


class TestResponses:
    def sent(self, head, *, data=b"x", end=True, client=GET):
        codec, _ = serve(client)
        codec.send_headers(1, head, end and not data)
        if data:
            codec.send_data(1, data, end)
        return codec, codec.data_to_send()

    def test_known_length(self):
        codec, data = self.sent(response(200, [(b"a", b"b"), (b"a", b"c")], content_length=1))
        assert data == b"HTTP/1.1 200 OK\r\na: b\r\na: c\r\ncontent-length: 1\r\n\r\nx"
        assert not codec.closing

    def test_unknown_length(self):
        codec, data = self.sent(response(200))
        assert data == b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n"
        assert not codec.closing

    def test_unknown_length_to_1_0(self):
        codec, data = self.sent(response(200), client=b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        assert data == b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nx"
        assert codec.closing

    def test_no_body(self):
        codec, data = self.sent(response(200), data=b"")
        assert data == b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
        assert not codec.closing

    def test_large_chunks_are_not_copied_into_one(self):
        codec, _ = serve(GET)
        codec.send_headers(1, response(200), False)
        codec.data_to_send()
        codec.send_data(1, b"x" * 5000, True)
        assert codec.data_to_send() == b"1388\r\n" + b"x" * 5000 + b"\r\n0\r\n\r\n"

    def test_trailers(self):
        codec, _ = serve(GET)
        codec.send_headers(1, response(200), False)
        codec.send_data(1, b"", False)
        codec.send_data(1, b"x", False)
        codec.send_trailers(1, [(b"grpc-status", b"0")])
        assert codec.data_to_send().endswith(b"\r\n\r\n1\r\nx\r\n0\r\ngrpc-status: 0\r\n\r\n")
        assert not codec.closing

    def test_trailers_behind_a_known_length_are_dropped(self):
        codec, _ = serve(GET)
        codec.send_headers(1, response(200, content_length=1), False)
        codec.send_data(1, b"x", False)
        codec.send_trailers(1, [(b"a", b"b")])
        assert codec.data_to_send().endswith(b"\r\n\r\nx")
        assert not codec.closing

    @pytest.mark.parametrize(("status", "line"), [(304, b"content-length: 9\r\n"), (204, b"")])
    def test_statuses_without_body(self, status, line):
        codec, data = self.sent(response(status, content_length=9))
        assert data.split(b"\r\n", 1)[1] == line + b"\r\n"
        assert not codec.closing

    def test_head(self):
        for length, line in ((9, b"content-length: 9\r\n"), (None, b"")):
            codec, data = self.sent(response(200, content_length=length), client=GET.replace(b"GET", b"HEAD"))
            assert data == b"HTTP/1.1 200 OK\r\n" + line + b"\r\n"
            assert not codec.closing

    def test_a_short_body_closes(self):
        codec, data = self.sent(response(200, content_length=2))
        assert data.endswith(b"\r\n\r\nx")
        assert codec.closing

    def test_a_long_body_is_cut_and_closes(self):
        codec, data = self.sent(response(200, content_length=2), data=b"xyz")
        assert data.endswith(b"\r\n\r\nxy")
        assert codec.closing

    def test_interim_heads(self):
        codec, _ = serve(GET)
        codec.send_headers(1, response(103, [(b"link", b"x")]), False)
        codec.send_headers(1, response(101, upgrade=b"x"), False)  # not asked for: not sent
        codec.send_headers(1, response(200, content_length=0), True)
        data = codec.data_to_send()
        assert data == b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"

    def test_interim_heads_are_not_for_1_0(self):
        codec, _ = serve(b"GET / HTTP/1.0\r\nHost: h\r\n\r\n")
        codec.send_headers(1, response(100), False)
        assert codec.data_to_send() == b""

    def test_persistence(self):
        for line, version, persists, said in (
            (b"Connection: close", b"1.1", False, b"connection: close"),
            (b"Connection: keep-alive, Close", b"1.1", False, b"connection: close"),
            (b"Connection: keep-alive", b"1.1", True, None),
            (b"A: b", b"1.1", True, None),
            (b"A: b", b"1.0", False, b"connection: close"),
            (b"Connection: Keep-Alive", b"1.0", True, b"connection: keep-alive"),
        ):
            client = b"GET / HTTP/%b\r\nHost: h\r\n%b\r\n\r\n" % (version, line)
            codec, data = self.sent(response(200, content_length=1), client=client)
            assert codec.closing != persists
            assert (said in data) if said else (b"connection" not in data)

    def test_an_early_final_response_closes(self):
        codec, _ = serve(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\nabc")
        codec.send_headers(1, response(413, content_length=0), True)
        assert b"connection: close" in codec.data_to_send()
        assert codec.closing
        assert codec.receive(b"defghij" + GET) == []

    def test_an_early_head_lets_the_body_go_on(self):
        codec, _ = serve(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nab")
        codec.send_headers(1, response(200), False)
        assert b"connection: close" in codec.data_to_send()
        assert shown(codec.receive(b"cde" + GET)) == [("data", b"cde", True)]
        assert not codec.closing
        codec.send_data(1, b"done", True)
        assert codec.closing

    def test_drain(self):
        codec, _ = serve(GET)
        codec.drain()
        codec.send_headers(1, response(200, content_length=0), True)
        assert b"connection: close" in codec.data_to_send()
        assert codec.closing

    def test_drain_after_the_head(self):
        codec, _ = serve(GET)
        codec.send_headers(1, response(200, content_length=1), False)
        codec.drain()
        codec.send_data(1, b"x", True)
        assert b"connection: close" not in codec.data_to_send()
        assert codec.closing

    def test_drain_while_idle(self):
        codec, _ = serve(GET)
        codec.send_headers(1, response(204), True)
        codec.drain()
        assert codec.closing
        fresh = H1ServerCodec(H1Limits())
        fresh.drain()
        assert not fresh.closing  # a client that has just come is served once
        fresh.receive(GET)
        fresh.send_headers(1, response(204), True)
        assert b"connection: close" in fresh.data_to_send()

    def test_reset_leaves_an_unfinished_body(self):
        codec, _ = serve(GET)
        codec.send_headers(1, response(200), False)
        codec.reset(1, None)
        codec.reset(1, None)
        codec.send_data(1, b"x", True)
        assert codec.data_to_send().endswith(b"\r\n\r\n")
        assert codec.closing
        assert codec.receive(GET) == []

    def test_calls_for_an_old_stream_do_nothing(self):
        codec, _ = serve(GET + GET)
        codec.send_headers(1, response(204), True)
        codec.receive(b"")
        codec.data_to_send()
        codec.send_headers(1, response(200), True)
        codec.send_data(1, b"x", True)
        codec.send_trailers(1, [])
        codec.reset(1, None)
        assert codec.data_to_send() == b""
        assert not codec.closing

    def test_fields_of_another_version_are_checked(self):
        codec, _ = serve(GET)
        with pytest.raises(ValueError, match="invalid value"):
            codec.send_headers(1, response(200, [(b"a", b"b\r\nc: d")], version=b"2"), True)


class TestUnfinishedHeads:
    def test_partial(self):
        codec, _ = serve(GET[:10])
        assert codec.partial
        codec.receive(GET[10:])
        assert not codec.partial
        assert not codec.pending
        assert not codec.multiplexed

    def test_expire(self):
        codec, _ = serve(b"HEAD / HTTP/1.1\r\nHost:")
        (event,) = codec.expire(ProxyError(Kind.SLOW_REQUEST, "slow"))
        assert (event.stream_id, event.error.kind) == (1, Kind.SLOW_REQUEST)
        codec.send_headers(1, response(408, content_length=2), False)
        codec.send_data(1, b"no", True)
        assert codec.data_to_send().endswith(b"content-length: 2\r\nconnection: close\r\n\r\n")
        assert codec.closing

    def test_client_has_none(self):
        with pytest.raises(NotImplementedError):
            asked().expire(ProxyError(Kind.SLOW_REQUEST, "slow"))
        assert not asked().pending


class TestServerEof:
    def test_idle(self):
        codec = H1ServerCodec(H1Limits())
        assert codec.receive_eof() == []
        assert codec.closing

    def test_half_close_is_answered(self):
        codec, _ = serve(GET + GET)
        assert codec.receive_eof() == []
        assert not codec.closing
        codec.send_headers(1, response(204), True)
        assert codec.pending
        assert shown(codec.receive(b""))[0][0] == "request"
        codec.send_headers(2, response(204), True)
        assert codec.closing

    def test_half_close_behind_an_unfinished_head(self):
        codec, _ = serve(GET + GET[:9])
        codec.receive_eof()
        codec.send_headers(1, response(204), True)
        assert codec.receive(b"") == []
        assert codec.closing

    def test_in_a_body(self):
        codec, _ = serve(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\nabc")
        assert shown(codec.receive_eof()) == [("StreamReset", Kind.CLIENT_LEFT)]
        assert codec.closing


class TestBackpressure:
    def test_unconsumed_body(self):
        codec, events = serve(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n\r\n" + b"x" * 50, buffer_bytes=60)
        assert codec.reading
        codec.receive(b"x" * 20)
        assert not codec.reading
        codec.consumed(1, events[-1].size)
        assert codec.reading

    def test_held_octets(self):
        codec, _ = serve(GET, header_bytes=100)
        codec.receive(b"x" * 100)
        assert codec.reading
        codec.receive(b"x")
        assert not codec.reading

    def test_old_streams_are_not_counted(self):
        codec, _ = serve(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\nxxxxxxxxx", buffer_bytes=10)
        codec.send_headers(1, response(204), True)
        codec.receive(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\nxxxxxxxxx")
        codec.consumed(1, 9)
        assert codec.reading


class TestClientSends:
    def sent(self, head, end):
        codec = H1ClientCodec(H1Limits())
        codec.send_headers(codec.open_stream(), head, end)
        return codec, codec.data_to_send()

    @pytest.mark.parametrize(
        ("head", "end", "data"),
        [
            (request(fields=[(b"a", b"b")]), True, b"GET / HTTP/1.1\r\nhost: h\r\na: b\r\n\r\n"),
            (request(b"OPTIONS", b"*"), True, b"OPTIONS * HTTP/1.1\r\nhost: h\r\n\r\n"),
            (request(target=b""), True, b"GET / HTTP/1.1\r\nhost: h\r\n\r\n"),
            (request(b"POST"), True, b"POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 0\r\n\r\n"),
            (request(b"POST", content_length=3), False, b"POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 3\r\n\r\n"),
            (
                request(b"POST", content_length=None),
                False,
                b"POST / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n",
            ),
            (request(content_length=None), True, b"GET / HTTP/1.1\r\nhost: h\r\n\r\n"),
            (request(te_trailers=True), True, b"GET / HTTP/1.1\r\nhost: h\r\nte: trailers\r\nconnection: te\r\n\r\n"),
            (
                request(upgrade=b"websocket", te_trailers=True),
                False,
                b"GET / HTTP/1.1\r\nhost: h\r\nupgrade: websocket\r\nte: trailers\r\nconnection: upgrade, te\r\n\r\n",
            ),
            (request(b"CONNECT", b"", b"db:1"), False, b"CONNECT db:1 HTTP/1.1\r\nhost: db:1\r\n\r\n"),
            (
                request(b"CONNECT", b"/chat", upgrade=b"websocket"),
                False,
                b"GET /chat HTTP/1.1\r\nhost: h\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n",
            ),
            (
                request(b"PUT", content_length=1, expect_continue=True),
                False,
                b"PUT / HTTP/1.1\r\nhost: h\r\ncontent-length: 1\r\nexpect: 100-continue\r\n\r\n",
            ),
        ],
    )
    def test_heads(self, head, end, data):
        assert self.sent(head, end)[1] == data

    def test_fields_of_another_version_are_checked(self):
        with pytest.raises(ValueError, match="invalid field name"):
            self.sent(request(fields=[(b"a b", b"c")], version=b"2"), True)

    def test_head_and_body_are_one_write(self):
        codec = H1ClientCodec(H1Limits())
        stream = codec.open_stream()
        codec.send_headers(stream, request(b"POST", content_length=None), False)
        codec.send_data(stream, b"abc", False)
        codec.send_trailers(stream, [(b"x", b"y")])
        assert codec.data_to_send().endswith(b"\r\n\r\n3\r\nabc\r\n0\r\nx: y\r\n\r\n")
        assert codec.data_to_send() == b""


class TestClientReceives:
    def test_small_response(self):
        codec = asked()
        data = b"HTTP/1.1 200 Fine\r\nContent-Length: 5\r\nKeep-Alive: 5\r\nA: b\r\nDate: today\r\n\r\nhello"
        events = codec.receive(data)
        assert shown(events) == [
            ("response", 200, 5, False),
            ("fields", (b"a", b"b"), (b"date", b"today")),
            ("data", b"hello", True),
        ]
        assert (head_of(events).reason, head_of(events).known) == (b"Fine", {b"date": b"today"})
        assert codec.can_open
        assert codec.open_stream() == 2

    @pytest.mark.parametrize(
        ("method", "data", "expected"),
        [
            (b"HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", [("response", 200, 5, True)]),
            (b"HEAD", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", [("response", 200, None, True)]),
            (b"HEAD", b"HTTP/1.1 200 OK\r\n\r\n", [("response", 200, None, True)]),
            (b"GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", [("response", 304, 5, True)]),
            (b"GET", b"HTTP/1.1 204 \r\nContent-Length: 0\r\n\r\n", [("response", 204, 0, True)]),
            (b"GET", b"HTTP/1.1 204\r\n\r\n", [("response", 204, None, True)]),
            (b"GET", b"HTTP/1.1 999 X\r\nContent-Length: 0\r\n\r\n", [("response", 999, 0, True)]),
            (
                b"GET",
                b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 1\r\n\r\nx",
                [("response", 200, 1, False), ("data", b"x", True)],
            ),
            (
                b"GET",
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n",
                [("response", 200, None, False), ("data", b"x", True)],
            ),
            (
                b"GET",
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\na: b\r\n\r\n",
                [("response", 200, None, False), ("data", b"x", False), ("trailers", (b"a", b"b"))],
            ),
        ],
    )
    def test_bodies_after_which_the_connection_is_idle(self, method, data, expected):
        codec = asked(method)
        assert [item for item in shown(codec.receive(data)) if item[0] != "fields"] == expected
        assert codec.can_open
        assert not codec.closing

    def test_interim_heads(self):
        codec = asked()
        data = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
        assert [item[1] for item in shown(codec.receive(data))[::2]] == [100, 103]
        assert not codec.can_open
        assert shown(codec.receive(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"))[0] == ("response", 200, 0, True)
        assert codec.can_open

    def test_too_many_interim_heads(self):
        codec = asked()
        events = codec.receive(b"HTTP/1.1 103 Early Hints\r\n\r\n" * 17)
        assert len(events) == 17
        assert shown(events)[-1] == ("StreamReset", Kind.BAD_RESPONSE)
        assert codec.closing

    @pytest.mark.parametrize(
        "head",
        [b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n\r\n"],
    )
    def test_body_until_eof(self, head):
        codec = asked()
        assert shown(codec.receive(head + b"abc"))[2] == ("data", b"abc", False)
        assert not codec.closing
        assert shown(codec.receive_eof()) == [("data", b"", True)]
        assert codec.closing
        assert not codec.can_open

    @pytest.mark.parametrize(
        "head",
        [
            b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 1\r\n\r\n",
            b"HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\n",
        ],
    )
    def test_close(self, head):
        codec = asked()
        assert shown(codec.receive(head + b"x"))[-1] == ("data", b"x", True)
        assert codec.closing
        assert codec.receive_eof() == []

    @pytest.mark.parametrize(
        "data",
        [
            b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 1, 1\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\n\r\n",
            b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"HTTP/1.1 20 OK\r\n\r\n",
            b"HTTP/1.1 099 OK\r\n\r\n",
            b"HTTP/1.1 2000 OK\r\n\r\n",
            b"HTTP/1.1  200 OK\r\n\r\n",
            b"HTTP/1.2 200 OK\r\n\r\n",
            b"HTTP/2 200\r\n\r\n",
            b"ICY 200 OK\r\n",
            b"<html>",
            b"\r\nHTTP/1.1 200 OK\r\n\r\n",
            b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
            b"HTTP/1.1 200 O\x00K\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length : 0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nA b: c\r\n\r\n",
            b"HTTP/1.1 200 OK\r\n : c\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nA: b\rc\r\n\r\n",
            b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
        ],
    )
    def test_bad_heads(self, data):
        codec = asked()
        assert shown(codec.receive(data)) == [("StreamReset", Kind.BAD_RESPONSE)]
        assert codec.closing
        assert codec.receive(data) == []

    def test_white_space_before_a_colon_is_removed(self):
        events = asked().receive(b"HTTP/1.1 200 OK\r\nX-A \t: b\r\nDate : c\r\nContent-Length: 0\r\n\r\n")
        assert shown(events)[1] == ("fields", (b"x-a", b"b"), (b"date", b"c"))

    def test_head_too_large(self):
        for data in (b"HTTP/1.1 200 OK\r\nA: " + b"a" * 70000, b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 129 + b"\r\n"):
            assert shown(asked().receive(data)) == [("StreamReset", Kind.RESPONSE_HEAD_TOO_LARGE)]

    def test_excess_octets_poison_but_do_not_harm(self):
        codec = asked()
        events = codec.receive(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nxy")
        assert shown(events)[2:] == [("data", b"x", True), ("ConnectionFailed", Kind.BAD_RESPONSE)]
        assert codec.closing
        assert not codec.can_open

    def test_octets_without_request_poison(self):
        codec = H1ClientCodec(H1Limits())
        assert shown(codec.receive(b"HTTP/1.1 408 Timeout\r\n\r\n")) == [("ConnectionFailed", Kind.BAD_RESPONSE)]
        assert codec.closing

    @pytest.mark.parametrize(
        ("data", "kind"),
        [
            (b"", Kind.TERMINATED),
            (b"HTTP/1.1 100 Continue\r\n\r\n", Kind.TERMINATED),
            (b"HTTP/1.1 2", Kind.RESPONSE_INCOMPLETE),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nx", Kind.RESPONSE_INCOMPLETE),
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n", Kind.RESPONSE_INCOMPLETE),
        ],
    )
    def test_cut_responses(self, data, kind):
        codec = asked()
        codec.receive(data)
        (event,) = codec.receive_eof()
        assert event.error.kind is kind
        assert not event.error.unprocessed
        assert codec.closing

    def test_bad_chunk(self):
        codec = asked()
        events = codec.receive(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nxy")
        assert shown(events)[2:] == [("data", b"x", False), ("StreamReset", Kind.BAD_RESPONSE)]
        assert codec.closing

    def test_idle_eof(self):
        codec = H1ClientCodec(H1Limits())
        assert codec.receive_eof() == []
        assert codec.closing
        assert not codec.can_open

    def test_early_response_and_reuse_when_the_request_completes(self):
        codec = H1ClientCodec(H1Limits())
        stream = codec.open_stream()
        codec.send_headers(stream, request(b"POST", content_length=None), False)
        assert shown(codec.receive(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"))[0][0] == "response"
        assert not codec.can_open
        assert not codec.closing
        codec.send_data(stream, b"x", True)
        assert codec.can_open

    def test_early_response_that_closes(self):
        codec = H1ClientCodec(H1Limits())
        stream = codec.open_stream()
        codec.send_headers(stream, request(b"POST", content_length=None), False)
        codec.receive(b"HTTP/1.1 413 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        codec.send_data(stream, b"x", True)
        assert codec.closing

    def test_a_request_cut_short_closes(self):
        codec = H1ClientCodec(H1Limits())
        stream = codec.open_stream()
        codec.send_headers(stream, request(b"POST", content_length=5), False)
        codec.send_data(stream, b"x", True)
        assert codec.closing

    def test_drain(self):
        codec = asked()
        codec.drain()
        assert not codec.closing
        codec.receive(b"HTTP/1.1 204 No Content\r\n\r\n")
        assert codec.closing

    def test_reset(self):
        codec = asked()
        codec.reset(1, ProxyError(Kind.INTERNAL, "lost"))
        assert codec.closing
        assert codec.receive(b"HTTP/1.1 204 No Content\r\n\r\n") == []
        assert codec.receive_eof() == []

    @pytest.mark.parametrize(
        ("attributes", "answer"),
        [
            ({"upgrade": b"websocket"}, b"HTTP/1.1 101 X\r\nConnection: Upgrade\r\nUpgrade: WebSocket\r\n\r\n"),
            ({"method": b"CONNECT"}, b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: x\r\n\r\n"),
        ],
    )
    def test_tunnels(self, attributes, answer):
        codec = asked(**attributes)
        if attributes.get("method"):
            answer = answer.replace(b"Transfer-Encoding: x\r\n", b"")
        assert shown(codec.receive(answer + b"ab"))[2:] == [("data", b"ab", False)]
        assert codec.send_data(1, b"to", False)
        codec.send_data(1, b"gether", True)
        assert codec.data_to_send() == b"together"
        assert codec.send_eof
        assert not codec.closing
        assert shown(codec.receive(b"HTTP/1.1 "))[0] == ("data", b"HTTP/1.1 ", False)
        assert shown(codec.receive_eof()) == [("data", b"", True)]
        assert codec.closing

    def test_a_refused_upgrade_leaves_the_connection_usable(self):
        codec = asked(upgrade=b"websocket")
        codec.receive(b"HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n")
        assert codec.can_open

    def test_an_upgrade_to_something_else(self):
        codec = asked(upgrade=b"websocket")
        events = codec.receive(b"HTTP/1.1 101 X\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n")
        assert shown(events) == [("StreamReset", Kind.BAD_RESPONSE)]

    def test_connection_options_do_not_pass(self):
        codec = asked()
        events = codec.receive(
            b"HTTP/1.1 200 OK\r\nConnection: x-hop, set-cookie\r\nX-Hop: 1\r\nSet-Cookie: a=b\r\nUpgrade: h2c\r\n"
            b"Content-Length: 0\r\n\r\n"
        )
        assert head_of(events).fields == [(b"set-cookie", b"a=b")]
        assert codec.can_open


class TestTables:
    """What is remembered between heads is bounded, and never wrong."""

    def test_they_are_bounded(self):
        for number in range(3000):
            fields = b"X-%d: a\r\nAccept: %d\r\nContent-Length: %d\r\n\r\n" % (number, number, number)
            _, events = serve(b"GET / HTTP/1.1\r\nHost: h%d\r\n" % number + fields)
            assert head_of(events).authority == b"h%d" % number
            assert head_of(events).fields == [(b"x-%d" % number, b"a"), (b"accept", b"%d" % number)]
            assert (
                head_of(asked(b"HEAD").receive(b"HTTP/1.1 200 Fine%d\r\n" % number + fields)).reason
                == b"Fine%d" % number
            )
        for table in (h1_request._authorities, h1_request._READER._lines, h1_response._READER._lines):
            assert 0 < len(table) <= 1024
        assert len(h1_request._READER._names) < 1500
        assert len(h1_response._status_lines) <= 256

    def test_credentials_are_not_remembered(self):
        serve(b"GET / HTTP/1.1\r\nHost: h\r\nAuthorization: secret\r\nCookie: secret\r\nX-Token: secret\r\n\r\n")
        assert not any(b"secret" in line for line in h1_request._READER._lines)

    def test_sent_status_lines(self):
        for number in range(600):
            codec, _ = serve(GET)
            codec.send_headers(1, response(200 + number, reason=b"R%d" % number, content_length=0), True)
            assert codec.data_to_send().startswith(b"HTTP/1.1 %d R%d\r\n" % (200 + number, number))
        assert len(h1_response._status_starts) <= 256

    def test_an_unknown_status_has_no_reason(self):
        codec, _ = serve(GET)
        codec.send_headers(1, response(799, content_length=0), True)
        assert codec.data_to_send().startswith(b"HTTP/1.1 799 \r\n")


def test_roles():
    server = H1ServerCodec(H1Limits())
    assert not server.can_open
    with pytest.raises(RuntimeError):
        server.open_stream()
    assert repr(server).startswith("<H1ServerCodec stream=0 receive=head ")
    client = H1ClientCodec(H1Limits())
    client.drain()
    assert client.closing


# Properties.

TOKENS = st.text("abcdefXYZ-!", min_size=1, max_size=8).map(str.encode)
VALUES = st.binary(max_size=12).map(lambda v: bytes(b for b in v if b > 31 and b != 127)).map(bytes.strip)
FIELDS = st.lists(st.tuples(TOKENS.map(lambda n: b"X-" + n), VALUES), max_size=5)
BODIES = st.lists(st.binary(min_size=1, max_size=20), max_size=4)


def block(fields):
    return b"".join(b"%b: %b\r\n" % field for field in fields)


def coded(pieces, trailers):
    """A chunked body."""
    return b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in pieces) + b"0\r\n" + block(trailers) + b"\r\n"


@st.composite
def messages(draw, start):
    """A message (octets behind its start line) with any framing, and its body."""
    fields, pieces = draw(FIELDS), draw(BODIES)
    if draw(st.booleans()):
        trailers = draw(FIELDS)
        return start + block(fields) + b"Transfer-Encoding: chunked\r\n\r\n" + coded(pieces, trailers)
    body = b"".join(pieces)
    return start + block(fields) + b"Content-Length: %d\r\n\r\n" % len(body) + body


REQUESTS = messages(b"POST /x HTTP/1.1\r\nHost: h\r\n")
RESPONSES = messages(b"HTTP/1.1 200 OK\r\n")


@st.composite
def cuts(draw, data):
    places = sorted(draw(st.lists(st.integers(0, len(data)), max_size=8)))
    return [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True)]


@st.composite
def mutated(draw, source):
    data = bytearray(draw(source))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(data) - 1))
        data[at : at + draw(st.integers(0, 2))] = draw(
            st.sampled_from([b"", b"\r", b"\n", b"\r\n", b" ", b"\x00", b":", b"0", b"5", b";", b"\t", b"\xff", b","])
        )
    return bytes(data)


def received_by_server(pieces, limits=None):
    codec = H1ServerCodec(limits or H1Limits(header_bytes=300, headers=6, target_bytes=100))
    events = [event for piece in pieces for event in codec.receive(piece)]
    return shown(events + codec.receive_eof())


def received_by_client(pieces):
    codec = asked()
    events = [event for piece in pieces for event in codec.receive(piece)]
    return shown(events + codec.receive_eof())


@given(data=st.data(), source=mutated(REQUESTS))
@settings(max_examples=300, deadline=None)
def test_cutting_a_request_changes_nothing(data, source):
    assert received_by_server(data.draw(cuts(source))) == received_by_server([source])


@given(data=st.data(), source=mutated(RESPONSES))
@settings(max_examples=300, deadline=None)
def test_cutting_a_response_changes_nothing(data, source):
    assert received_by_client(data.draw(cuts(source))) == received_by_client([source])


@given(source=mutated(REQUESTS))
@settings(max_examples=100, deadline=None)
def test_octet_by_octet_changes_nothing(source):
    assert received_by_server([source[i : i + 1] for i in range(len(source))]) == received_by_server([source])


@given(pieces=st.lists(st.binary(max_size=50), max_size=5))
@settings(max_examples=200, deadline=None)
def test_any_octets_make_events(pieces):
    received_by_server(pieces)
    received_by_client(pieces)


def read_by_h11(role, data):
    """What h11 makes of the octets: (start, fields, body, trailers)."""
    connection = h11.Connection(role)
    if role is h11.CLIENT:
        connection.send(h11.Request(method="GET", target="/", headers=[("host", "h")]))
        connection.send(h11.EndOfMessage())
    connection.receive_data(data)
    connection.receive_data(b"")
    body = b""
    while True:
        event = connection.next_event()
        match event:
            case h11.Request():
                start, fields = (event.method, event.target), list(event.headers)
            case h11.Response():
                start, fields = event.status_code, list(event.headers)
            case h11.Data():
                body += bytes(event.data)
            case h11.EndOfMessage():
                return start, fields, body, list(event.headers)


FRAMING = (b"host", b"content-length", b"transfer-encoding")


@given(source=REQUESTS)
@settings(max_examples=150, deadline=None)
def test_h11_reads_requests_alike(source):
    start, fields, body, trailers = read_by_h11(h11.SERVER, source)
    events = received_by_server([source], H1Limits())
    assert (events[0][1:3], list(events[1][1:])) == (start, [f for f in fields if f[0] not in FRAMING])
    assert (events[2][1] if len(events) > 2 and events[2][0] == "data" else b"") == body
    assert (list(events[-1][1:]) if events[-1][0] == "trailers" else []) == trailers


@given(source=mutated(REQUESTS))
@settings(max_examples=300, deadline=None)
def test_h11_agrees_wherever_a_request_is_accepted(source):
    events = received_by_server([source], H1Limits())
    if len(events) < 2 or events[0][0] != "request" or not (events[-1][0] == "trailers" or events[-1][2:] == (True,)):
        return
    while source.startswith(b"\r\n"):  # an empty line before the request, which h11 does not skip
        source = source[2:]
    start, fields, body, _ = read_by_h11(h11.SERVER, source)
    assert (events[0][1:3], list(events[1][1:])) == (start, [f for f in fields if f[0] not in FRAMING])
    assert (events[2][1] if len(events) > 2 and events[2][0] == "data" else b"") == body


@given(fields=FIELDS, pieces=BODIES, trailers=FIELDS, known_length=st.booleans())
@settings(max_examples=150, deadline=None)
def test_a_message_survives_both_codecs(fields, pieces, trailers, known_length):
    fields = [(name.lower(), value) for name, value in fields]
    trailers = [(name.lower(), value) for name, value in trailers]
    body = b"".join(pieces)
    server = H1ServerCodec(H1Limits())
    client = H1ClientCodec(H1Limits())
    stream = client.open_stream()
    length = len(body) if known_length else None
    client.send_headers(stream, request(b"POST", fields=fields, content_length=length), False)
    for piece in pieces:
        client.send_data(stream, piece, False)
    client.send_trailers(stream, trailers)
    got = shown(server.receive(client.data_to_send()))
    assert got[:2] == [("request", b"POST", b"/", b"h", length, length == 0), ("fields", *fields)]
    server.send_headers(stream, response(200, fields, content_length=length), False)
    for piece in pieces:
        server.send_data(stream, piece, False)
    server.send_trailers(stream, trailers)
    back = shown(client.receive(server.data_to_send()))
    assert back[2:] == got[2:]
    if body:
        assert got[2][1] == body
    assert got[-1] == ("trailers", *trailers) if trailers and not known_length else got[-1][0] != "trailers"
    assert client.can_open
    assert not server.closing
