"""gRPC's rules seen on the wire: deadlines that the proxy keeps, errors that it makes, results that it retries."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from .conftest import Lab, Start, start_proxy, wait_for
from .peers import Origin, connect

pytestmark = pytest.mark.asyncio(loop_scope="module")

CALL = [("content-type", "application/grpc"), ("te", "trailers")]
MESSAGE = b"\0\0\0\0\x02hi"


async def unavailable(got: Any) -> None:
    await got.body()
    await got.respond(200, [("content-type", "application/grpc"), ("grpc-status", "14")], end=True)


async def fine(got: Any) -> None:
    await got.body()
    await got.respond(200, [("content-type", "application/grpc")])
    await got.send(MESSAGE)
    await got.end([("grpc-status", "0")])


async def silent(got: Any) -> None:
    await got.until(lambda: False)


async def ask(client: Any, *fields: tuple[str, str]) -> Any:
    call = await client.start("POST", "/s.S/M", [*CALL, *fields], end=False)
    await call.send(MESSAGE)
    await call.end()
    return call


async def test_a_deadline_that_the_client_does_not_keep_itself(start: Start) -> None:
    origin, proxy = await start("h2")
    origin.handler = silent
    client = await connect("h2", proxy.port, None)
    call = await ask(client, ("grpc-timeout", "120m"))
    assert await call.status() == 200
    assert (call.one("grpc-status"), call.one("content-type")) == ("4", "application/grpc")
    assert "0.12 s" in call.one("grpc-message")
    assert await call.body() == b""
    assert not call.all("content-length")
    assert origin.requests[0].one("grpc-timeout") == "120m"
    assert await origin.requests[0].end_of_it() == 8  # cancelled
    await client.close()
    await proxy.quiet()


async def test_a_deadline_within_the_request(start: Start) -> None:
    origin, proxy = await start("h2")
    origin.handler = silent
    client = await connect("h2", proxy.port, None)
    call = await client.start("POST", "/s.S/M", [*CALL, ("grpc-timeout", "120m")], end=False)
    await call.send(MESSAGE)
    assert await call.status() == 200
    assert call.one("grpc-status") == "4"
    await client.close()
    await proxy.quiet()


async def test_a_deadline_within_the_answer(start: Start) -> None:
    origin, proxy = await start("h2")

    async def begins(got: Any) -> None:
        await got.respond(200, [("content-type", "application/grpc")])
        await got.send(MESSAGE)
        await silent(got)

    origin.handler = begins
    client = await connect("h2", proxy.port, None)
    call = await ask(client, ("grpc-timeout", "150m"))
    assert await call.body() == MESSAGE
    assert dict(call.trailers)["grpc-status"] == "4"
    assert await origin.requests[0].end_of_it() == 8
    await client.close()
    await proxy.quiet()


async def test_the_routes_deadline_is_kept_where_it_is_shorter(start: Start) -> None:
    origin, proxy = await start("h2", total="150ms")
    origin.handler = silent
    client = await connect("h2", proxy.port, None)
    call = await ask(client, ("grpc-timeout", "10S"))
    assert await call.status() == 200
    assert call.one("grpc-status") == "4"
    assert "0.15 s" in call.one("grpc-message")
    await client.close()
    await proxy.quiet()


async def test_other_posts_have_no_such_deadline(start: Start) -> None:
    _, proxy = await start("h2")
    client = await connect("h2", proxy.port, None)
    call = await client.start("POST", "/", [("grpc-timeout", "1n"), ("content-length", "0")])
    assert await call.body() == b"ok"
    await client.close()
    await proxy.quiet()


async def test_an_origin_that_breaks_off(start: Start) -> None:
    origin, proxy = await start("h2")

    async def breaks(got: Any) -> None:
        await got.respond(200, [("content-type", "application/grpc")])
        await got.send(MESSAGE)
        await asyncio.sleep(0.05)  # the head should be on its way
        await got.reset(2)

    origin.handler = breaks
    client = await connect("h2", proxy.port, None)
    call = await ask(client)
    assert await call.body() == MESSAGE
    assert dict(call.trailers)["grpc-status"] == "14"
    await client.close()
    await proxy.quiet()


@pytest.mark.parametrize("keyed", [True, False])
async def test_unavailable_goes_elsewhere_where_it_may(lab: Lab, keyed: bool) -> None:
    origins = [await Origin("h2", None).start() for _ in range(2)]

    async def first_fails(got: Any) -> None:
        await (fine if got.one("onetrip-attempt") else unavailable)(got)

    for origin in origins:
        origin.handler = first_fails
    retry = "{attempts: 2, budget: 100%, idempotency_key: true}"
    proxy = await start_proxy(
        lab, *(origin.port for origin in origins), down_tls=False, up="h2", up_tls=False, retry=retry
    )
    client = await connect("h2", proxy.port, None)
    call = await ask(client, *([("idempotency-key", "k")] if keyed else []))
    if keyed:
        assert await call.body() == MESSAGE
        assert call.trailers == [("grpc-status", "0")]
        assert sum(len(origin.requests) for origin in origins) == 2
    else:
        assert await call.status() == 200
        assert call.one("grpc-status") == "14"
        await call.until(lambda: call.ended)
        assert sum(len(origin.requests) for origin in origins) == 1
    await client.close()
    await proxy.quiet()
    await proxy.worker.close()
    for origin in origins:
        await origin.close()


async def test_results_that_are_the_calls_own_are_not_tried_again(start: Start) -> None:
    origin, proxy = await start("h2", retry="{attempts: 2, budget: 100%, idempotency_key: true}")

    async def not_found(got: Any) -> None:
        await got.body()
        await got.respond(200, [("content-type", "application/grpc"), ("grpc-status", "5")], end=True)

    origin.handler = not_found
    client = await connect("h2", proxy.port, None)
    call = await ask(client, ("idempotency-key", "k"))
    assert await call.status() == 200
    assert call.one("grpc-status") == "5"
    assert len(origin.requests) == 1
    await client.close()
    await proxy.quiet()


async def test_failed_calls_count_against_their_region(lab: Lab) -> None:
    """`:status` says 200 every time: a region whose calls all fail is drained for what `grpc-status` says."""
    bad = await Origin("h2", None).start()
    bad.handler = unavailable
    proxy = await start_proxy(lab, bad.port, down_tls=False, up="h2", up_tls=False, retry="off")
    client = await connect("h2", proxy.port, None)
    (state,) = proxy.upstream.balancer.regions
    for _ in range(3):
        call = await ask(client)
        await call.until(lambda call=call: call.ended)
    assert state.health.streak
    await client.close()
    await wait_for(lambda: proxy.listener.counters.in_flight == 0)
    await proxy.worker.close()
    await bad.close()
