"""What is kept of a request's body: >> received … << asked of the client."""

from __future__ import annotations

from typing import Any

import pytest

from proxy.exchange import body as bodies
from proxy.exchange.body import REPLAY_BYTES, Body

from ...programs import interpreted


@pytest.fixture(autouse=True)
def interpreted_only() -> None:
    interpreted(bodies)


class Stream:
    """Counts, as the real one does: pauses and resumes must match."""

    paused = 0

    def pause(self) -> None:
        self.paused += 1

    def resume(self) -> None:
        self.paused -= 1


def body(for_tunnel: bool = False) -> tuple[Body, Stream]:
    stream: Any = Stream()
    return Body(stream, for_tunnel), stream


def test_it_is_kept_up_to_the_bound_and_what_passed_it() -> None:
    one, _ = body()
    one.keep(b"x" * REPLAY_BYTES)
    assert (one.full, one.chunks) == (False, [b"x" * REPLAY_BYTES])
    one.keep(b"")
    assert one.chunks == [b"x" * REPLAY_BYTES], "an end without bytes is no piece"
    one.keep(b"y")
    assert one.full


def test_what_was_let_go_is_kept_no_more() -> None:
    one, _ = body()
    one.keep(b"a")
    one.let_go()
    one.keep(b"b")
    assert (one.chunks, one.size) == (None, 1)


def test_pauses_and_resumes_match_however_often_they_are_asked_for() -> None:
    one, stream = body()
    one.resume()
    assert stream.paused == 0
    one.pause()
    one.pause()
    assert stream.paused == 1
    one.resume()
    one.resume()
    assert stream.paused == 0


def test_a_request_for_a_tunnel_is_complete_with_its_head() -> None:
    assert body(for_tunnel=True)[0].ended
    assert not body()[0].ended
