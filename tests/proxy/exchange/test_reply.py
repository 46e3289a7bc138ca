"""Responses of the proxy's own."""

from __future__ import annotations

import json
import random
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import Kind, ProxyError
from proxy.exchange.reply import error_reply, final_answer, proxy_status, reason_phrase
from proxy.http.message import RequestHead, ResponseHead
from proxy.observe.record import RequestRecord, TryRecord
from routing.balancer import Balancer
from routing.model import Endpoint, Region, Upstream

ERROR_TYPES = frozenset(  # RFC 9209 section 2.3
    [
        "dns_timeout",
        "dns_error",
        "destination_not_found",
        "destination_unavailable",
        "destination_ip_prohibited",
        "destination_ip_unroutable",
        "connection_refused",
        "connection_terminated",
        "connection_timeout",
        "connection_read_timeout",
        "connection_write_timeout",
        "connection_limit_reached",
        "tls_protocol_error",
        "tls_certificate_error",
        "tls_alert_received",
        "http_request_error",
        "http_request_denied",
        "http_response_incomplete",
        "http_response_header_section_size",
        "http_response_header_size",
        "http_response_body_size",
        "http_response_trailer_section_size",
        "http_response_trailer_size",
        "http_response_transfer_coding",
        "http_response_content_coding",
        "http_response_timeout",
        "http_upgrade_failed",
        "http_protocol_error",
        "proxy_internal_response",
        "proxy_internal_error",
        "proxy_configuration_error",
        "proxy_loop_detected",
    ]
)


def record(*fields: tuple[bytes, bytes], trusted: bool = False, **more: Any) -> RequestRecord:
    found = RequestRecord("192.0.2.1", b"", 0.0)
    found.head = RequestHead(b"GET", b"/", b"shop.example", list(fields), dict(fields))
    found.trusted = trusted
    for name, value in more.items():
        setattr(found, name, value)
    return found


def reply(found: RequestRecord, error: ProxyError, retry_after: float = 0.0) -> tuple[ResponseHead, bytes]:
    return error_reply(found, error, False, retry_after)


def attempt(region: str, endpoint: str, error: ProxyError | None) -> TryRecord:
    host, _, port = endpoint.rpartition(":")
    model = Upstream("api", (Region(region, (Endpoint(host, int(port)),)),))
    found = TryRecord(Balancer(model, random.Random(1), 0.0).endpoints[0], 0.0)
    found.error = error
    return found


TRIED = [
    attempt("us-east", "10.0.0.1:443", ProxyError(Kind.REFUSED, "10.0.0.1:443: Connection refused")),
    attempt("eu-west", "10.0.0.2:443", None),
]


@pytest.mark.parametrize("kind", list(Kind))
def test_every_kind_has_a_status_and_a_registered_error_type(kind: Kind) -> None:
    assert kind.proxy_status in ERROR_TYPES
    assert 400 <= kind.status < 600
    head, body = reply(record(), ProxyError(kind, "what happened"))
    assert head.status == kind.status
    assert head.content_length == len(body)
    fields = dict(head.fields)
    assert fields[b"proxy-status"].startswith(b"onetrip; error=" + kind.proxy_status.encode() + b"; details=")
    assert fields[b"cache-control"] == b"no-store"
    assert (b"retry-after" in fields) == (kind.status == 503)


def test_the_body_says_what_was_tried_and_why_it_failed() -> None:
    error = ProxyError(Kind.RESPONSE_TIMEOUT, "no response within 15 s")
    head, body = reply(record(tries=TRIED, request_id=b"abc"), error)
    assert dict(head.fields)[b"content-type"] == b"text/plain; charset=utf-8"
    assert body.decode().splitlines() == [
        "504 Gateway Timeout: no response within 15 s",
        "tried us-east/10.0.0.1:443: 10.0.0.1:443: Connection refused",
        "tried eu-west/10.0.0.2:443: no answer",
        "request abc",
    ]


def test_a_client_that_accepts_json_gets_json() -> None:
    error = ProxyError(Kind.UNAVAILABLE, 'no region "can"')
    asked = record((b"accept", b"application/json"), tries=TRIED, request_id=b"abc")
    head, body = reply(asked, error, 7.0)
    assert dict(head.fields)[b"content-type"] == b"application/json"
    assert dict(head.fields)[b"retry-after"] == b"7"
    assert json.loads(body) == {
        "status": 503,
        "error": "unavailable",
        "details": 'no region "can"',
        "tried": [
            "us-east/10.0.0.1:443: 10.0.0.1:443: Connection refused",
            "eu-west/10.0.0.2:443: no answer",
        ],
        "request_id": "abc",
    }


def test_what_an_origin_sent_amiss_is_for_the_log_only() -> None:
    error = ProxyError(Kind.BAD_RESPONSE, "header with a secret of somebody else's")
    head, body = reply(record(), error)
    assert b"secret" not in body
    assert b"secret" not in dict(head.fields)[b"proxy-status"]


@given(st.text(max_size=600))
def test_details_are_a_structured_string_whatever_they_hold(details: str) -> None:
    value = proxy_status(ProxyError(Kind.INTERNAL, details))
    # RFC 8941 section 3.3.3: printable ASCII, with quotes and backslashes escaped.
    assert re.fullmatch(rb'onetrip; error=proxy_internal_error; details="(?:[ !#-\[\]-~]|\\["\\])*"', value)


def test_debug_fields_are_for_trusted_clients_that_ask() -> None:
    error = ProxyError(Kind.TERMINATED, "gone")
    asks = (b"onetrip-debug", b"1")
    for asked, wanted in (
        (record(asks, trusted=True, tries=TRIED), True),
        (record(asks, tries=TRIED), False),
        (record(trusted=True), False),
    ):
        fields = dict(reply(asked, error)[0].fields)
        assert (b"server-timing" in fields) == wanted
        if wanted:
            assert fields[b"onetrip-attempts"] == b"2"
            assert re.fullmatch(rb"onetrip;dur=[0-9.]+", fields[b"server-timing"])


def test_upgrade_required_names_what_to() -> None:
    assert dict(reply(record(), ProxyError(Kind.UPGRADE_REQUIRED, "x"))[0].fields)[b"upgrade"] == b"HTTP/1.1"


def test_trace_echoes_the_request_but_no_secrets() -> None:
    fields = [(b"accept", b"*/*"), (b"authorization", b"Bearer x"), (b"cookie", b"id=1")]
    head, body = final_answer(RequestHead(b"TRACE", b"/path", b"shop.example", fields, {}))
    assert head.status == 200
    assert head.fields == [(b"content-type", b"message/http")]
    assert body == b"TRACE /path HTTP/1.1\r\nhost: shop.example\r\naccept: */*\r\n\r\n"


def test_options_at_the_last_hop_is_answered() -> None:
    head, body = final_answer(RequestHead(b"OPTIONS", b"*", b"shop.example", [], {}))
    assert (head.status, body) == (204, b"")
    assert b"GET" in dict(head.fields)[b"allow"]


def test_reasons() -> None:
    assert reason_phrase(502) == "Bad Gateway"
    assert reason_phrase(799) == ""
