"""A finished request as a line of the access log.

Nearly all requests have one attempt and no fault: their line is one bytes format over values that are bytes already,
which costs a quarter of building a record and encoding it. Whatever could need JSON's escapes, and every fault, goes
the general way: clients choose most of these values, and must not choose the line's fields.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from .access_log import AccessRecord, encode

if TYPE_CHECKING:
    from .record import RequestRecord

_LEARNT_MAX: Final = 1024
_LEARNT_BYTES_MAX: Final = 256  # of one user agent; longer ones are encoded each time
_UNPRINTED: Final = bytes({*range(0x20), *range(0x7F, 0x100), 0x22, 0x5C})
"""Octets that a JSON string can't hold as they are."""

_agents: Final[dict[bytes, bytes]] = {}
"""User agents as they stand in JSON; the few that a service sees, over and over. Past the bound they are forgotten."""


def _agent(value: bytes) -> bytes:
    found = _agents.get(value)
    if found is None:
        found = msgspec.json.encode(value.decode("latin-1"))
        if len(value) <= _LEARNT_BYTES_MAX:
            if len(_agents) >= _LEARNT_MAX:
                _agents.clear()  # else the first that anybody sent would stay for ever
            _agents[value] = found
    return found


def access_line(record: RequestRecord, listener: str, timestamp: bytes, now: float) -> bytes:
    """The line, with its line feed. `timestamp`: that of `now` on the wall."""
    path = record.path
    tried = record.tries
    head = record.head
    chosen = b"".join((head.method, head.authority, path, record.request_id, record.traceparent))
    if record.error is not None or len(tried) != 1 or len(chosen.translate(None, _UNPRINTED)) != len(chosen):
        return encode(access_record(record, listener, timestamp, now))
    attempt = tried[0]
    queue_us = int((attempt.connected_at - attempt.started) * 1e6)
    waited = b'"queue":0,"connect":0,"tls":0'
    if queue_us > 0:
        connect_us = int((attempt.seconds[0] + attempt.seconds[1]) * 1e6)
        tls_us = int(attempt.seconds[2] * 1e6)
        numbers = (*divmod(queue_us, 1000), *divmod(connect_us, 1000), *divmod(tls_us, 1000))
        waited = b'"queue":%d.%03d,"connect":%d.%03d,"tls":%d.%03d' % numbers
    first_us = int((record.first_byte_at - record.started) * 1e6)
    total_us = int((now - record.started) * 1e6)
    agent = head.known.get(b"user-agent")
    return (
        b'{"time":"%b",%b,"method":"%b","host":"%b","path":"%b","protocol":"HTTP/%b","status":%d,%b,"attempts":1,'
        b'"hedged":false,"bytes_in":%d,"bytes_out":%d,%b,"first_byte":%d.%03d,"total":%d.%03d,"request_id":"%b",'
        b'"traceparent":"%b","user_agent":%b,"error":"","details":"","tried":[]}\n'
        % (
            timestamp,
            record.log_start,
            head.method,
            head.authority,
            path,
            head.version,
            record.status,
            attempt.log_target,
            record.bytes_in,
            record.bytes_out,
            waited,
            first_us // 1000,
            first_us % 1000,
            total_us // 1000,
            total_us % 1000,
            record.request_id,
            record.traceparent,
            b'""' if agent is None else _agent(agent),
        )
    )


def access_record(record: RequestRecord, listener: str, timestamp: bytes, now: float) -> AccessRecord:
    """The general way."""
    head = record.head
    line = AccessRecord(
        timestamp.decode(),
        listener,
        record.client,
        head.method.decode("latin-1"),
        head.authority.decode("latin-1"),
        record.path.decode("latin-1"),
        "HTTP/" + head.version.decode("latin-1"),
        record.status,
    )
    tried = record.tries
    line.attempts = len(tried)
    line.hedged = record.hedged
    line.bytes_in = record.bytes_in
    line.bytes_out = record.bytes_out
    line.total = round((now - record.started) * 1e3, 3)
    line.request_id = record.request_id.decode("latin-1")
    line.traceparent = record.traceparent.decode("latin-1")
    line.user_agent = head.known.get(b"user-agent", b"").decode("latin-1")
    if record.first_byte_at:
        line.first_byte = round((record.first_byte_at - record.started) * 1e3, 3)
    if tried:
        attempt = record.winner or tried[-1]
        target = attempt.target
        line.upstream = record.upstream
        line.region = target.region.name
        line.endpoint = str(target.endpoint)
        if attempt.connected_at:
            line.queue = round((attempt.connected_at - attempt.started) * 1e3, 3)
        line.connect = round((attempt.seconds[0] + attempt.seconds[1]) * 1e3, 3)
        line.tls = round(attempt.seconds[2] * 1e3, 3)
        line.tried = [
            f"{a.target.region.name}/{a.target.endpoint}: {_end_of(a.error)}" for a in tried if a is not record.winner
        ]
    if record.error is not None:
        line.error = record.error.kind.label
        line.details = record.error.details
    return line


def _end_of(error: Exception | None) -> str:
    return str(error) if error is not None else "cancelled"
