"""The admin endpoints: health, metrics, status, and changes by POST. They are served by the same connection and codec
as requests.

`/livez` the process answers · `/readyz` it takes traffic (503 while starting or draining) · `/healthz` as readyz,
with reasons · `/metrics` · `/status` · `/config` · `/explain?url=` · `POST /drain /undrain /reload` · `/` a page for
people.

Faults are JSON, {"fault": text}: 400 the request can't be understood, 401 token, 403 another site's page asks, 404 no
such path, region or upstream, 405 method, 421 asked by a name that is not its own, 422 the config was refused, 503 no
worker answers.
"""

from __future__ import annotations

from email.utils import formatdate
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast
from urllib.parse import parse_qs, urlsplit

import msgspec

from proxy.config.units import UnitError, parse_duration
from proxy.downstream.base import ListenerSettings
from proxy.downstream.listener import Listener
from proxy.errors import Kind, ProxyError
from proxy.exchange.reply import reason_phrase
from proxy.http.h1 import H1Limits
from proxy.http.message import RequestHead, ResponseHead
from proxy.http.serving import CallableService
from proxy.http.stream import RequestHandler
from proxy.loop.bites import Bites
from proxy.observe.exposition import pieces
from proxy.observe.metrics import ListenerCounters

from .questions import merge

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from proxy.http.carrier import ConnectionStream
    from proxy.http.message import Fields
    from proxy.loop.background import Background
    from proxy.loop.timers import Timers
    from proxy.loop.turn import Turn

    from .callers import Callers
    from .questions import Backend

BODY_MAX: Final = 64 * 1024
_CHANGES: Final = frozenset(("/drain", "/undrain", "/reload"))


@cache
def onetrip_version() -> str:
    """The installed version."""
    from importlib.metadata import PackageNotFoundError, version  # noqa: PLC0415 - see `test_imports`

    try:
        return version("onetrip")
    except PackageNotFoundError:
        return "0+source"


def prepare() -> None:
    """Import what the first question, and everybody's requests with it, would wait for."""
    onetrip_version()


class Answer(Exception):
    """Ends a request with this status and these contents."""

    def __init__(self, status: int, content: Any, fields: Fields | None = None) -> None:
        super().__init__(status)
        self.status = status
        self.content = content
        self.fields = fields or []


class AdminExchange(RequestHandler):
    """One admin request: collects its (small) body, then asks the backend in a task."""

    head: RequestHead

    def __init__(self, admin: Admin, stream: ConnectionStream) -> None:
        self.admin = admin
        self.stream = stream
        self._body = bytearray()
        self._done = False

    def on_headers(self, head: RequestHead | ResponseHead, end: bool) -> None:
        """The request's head."""
        self.head = cast("RequestHead", head)
        if self.head.upgrade or self.head.method == b"CONNECT":
            self.stream.received_end = True
            end = True
        if end:
            self._start()

    def on_data(self, data: bytes, end: bool) -> None:
        """The request's body."""
        self._body += data
        if len(self._body) > BODY_MAX:
            self.refuse_head(self.head, ProxyError(Kind.BODY_TOO_LARGE, f"bodies here have at most {BODY_MAX} bytes"))
        elif end:
            self._start()

    def on_trailers(self, fields: Fields) -> None:
        """Trailers end the request, and mean nothing here."""
        self._start()

    def on_writable(self) -> None:
        """Answers are small: nothing waits for this."""

    def on_reset(self, error: ProxyError) -> None:
        """The client left."""
        self._done = True

    def refuse_head(self, head: RequestHead, error: ProxyError) -> None:
        """A request that can't be accepted."""
        self._send(error.status, {"fault": error.details}, [])

    def _start(self) -> None:
        self.admin.background.start(self._run(), "admin request")

    async def _run(self) -> None:
        try:
            content = await self.admin.handle(self.head, bytes(self._body))
        except Answer as answer:
            self._send(answer.status, answer.content, answer.fields)
        except Exception:
            self._send(500, {"fault": "the proxy failed here: see its log"}, [])
            raise
        else:
            self._send(200, content, [])

    def _send(self, status: int, content: Any, fields: Fields) -> None:
        if self._done:
            return
        self._done = True
        if isinstance(content, bytes):
            body, kind = content, b"text/plain; version=0.0.4; charset=utf-8"
        elif isinstance(content, str):
            body, kind = (
                content.encode(),
                b"text/html; charset=utf-8" if content.startswith("<!doctype") else b"text/plain; charset=utf-8",
            )
        else:
            body, kind = msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n", b"application/json"
        date = formatdate(usegmt=True).encode()
        head = ResponseHead(
            status,
            [
                (b"content-type", kind),
                (b"cache-control", b"no-store"),
                (b"date", date),
                *fields,
            ],
            {},
            reason=reason_phrase(status).encode(),
            content_length=len(body),
        )
        stream = self.stream
        stream.send_headers(head, not body)
        if body:
            stream.send_data(body, True)
        if not stream.received_end:
            stream.reset(None)


class Admin:
    """The admin address: a listener whose requests it answers itself."""

    def __init__(
        self,
        backend: Backend,
        callers: Callers,
        *,
        turn: Turn,
        timers: Timers,
        background: Background,
        log: Any,
        restarts: Callable[[], int],
    ) -> None:
        self.backend = backend
        self.background = background
        self.callers = callers
        self._restarts = restarts
        self.listener = Listener(
            "admin",
            ListenerSettings(H1Limits(body_bytes=BODY_MAX), header_timeout_s=10.0, connection_limit=256),
            turn=turn,
            timers=timers,
            log=log,
            service=CallableService(lambda _, stream: AdminExchange(self, stream)),
            counters=ListenerCounters(),
        )

    async def handle(self, head: RequestHead, body: bytes) -> Any:
        """The answer's contents: bytes (metrics), text, or what becomes JSON. Raises Answer for anything but 200."""
        try:
            url = urlsplit(head.target.decode("latin-1"))
        except ValueError as error:
            raise Answer(400, {"fault": str(error)}) from None
        path = url.path
        refusal = self.callers.refusal(path, head, change=path in _CHANGES)
        if refusal is not None:
            status, fault, fields = refusal
            raise Answer(status, {"fault": fault}, fields)
        reads: dict[str, Callable[[], Awaitable[Any]]] = {
            "/": self._page,
            "/livez": self._live,
            "/readyz": self._ready,
            "/healthz": self._health,
            "/metrics": self._metrics,
            "/status": self._status,
            "/config": self._config,
            "/explain": lambda: self._explain(parse_qs(url.query)),
        }
        if path in _CHANGES:
            if head.method != b"POST":
                raise Answer(405, {"fault": f"{path} changes something: use POST"}, [(b"allow", b"POST")])
            return await (self._reload() if path == "/reload" else self._drain(path[1:], body))
        if path not in reads:
            raise Answer(404, {"fault": f"nothing at {path}", "paths": [*reads, *sorted(_CHANGES)]})
        if head.method not in (b"GET", b"HEAD"):
            raise Answer(405, {"fault": f"{path} is read by GET"}, [(b"allow", b"GET, HEAD")])
        return await reads[path]()

    async def _ask(self, question: dict[str, Any]) -> list[dict[str, Any]]:
        """Every worker's answer, of which there is one at least."""
        return _some(await self.backend.ask(question))

    # -- reading -----------------------------------------------------------------------------------

    async def _live(self) -> str:
        return "ok\n"

    async def _ready(self) -> str:
        ready, why = await self._readiness()
        if not ready:
            raise Answer(503, f"{why}\n", [(b"retry-after", b"1")])
        return "ok\n"

    async def _health(self) -> dict[str, Any]:
        ready, why = await self._readiness()
        content = {"live": True, "ready": ready, "reason": why}
        if not ready:
            raise Answer(503, content, [(b"retry-after", b"1")])
        return content

    async def _readiness(self) -> tuple[bool, str]:
        if self.backend.stopping:
            return False, "draining"
        why = await self.backend.readiness()
        return not why, why or "ready"

    async def _metrics(self) -> bytes:
        total = await self.backend.snapshot()
        total.add("build_info", 1, version=onetrip_version())
        total.add("worker_restarts", self._restarts())
        for result, count in self.backend.reloads().items():
            total.add("config_reloads", count, result=result)
        bites, text = Bites(), []
        for piece in pieces(total):
            text.append(piece)
            await bites.rest()
        return "".join(text).encode()

    async def _status(self) -> dict[str, Any]:
        answers = await self._ask({"do": "status"})
        merged = merge(answers)
        merged.pop("worker", None)
        return {"version": onetrip_version(), "workers": len(answers), "stopping": self.backend.stopping, **merged}

    async def _config(self) -> str:
        return await self.backend.config_yaml()

    async def _explain(self, wanted: dict[str, list[str]]) -> dict[str, Any]:
        if "url" not in wanted:
            raise Answer(400, {"fault": "say which request: /explain?url=http://host/path"})
        method = wanted.get("method", ["GET"])[0]
        found = (await self._ask({"do": "explain", "url": wanted["url"][0], "method": method}))[0]
        if "fault" in found:
            raise Answer(400, found)
        return found

    async def _page(self) -> str:
        return Path(__file__).with_name("dashboard.html").read_text(encoding="utf-8")

    # -- changing ----------------------------------------------------------------------------------

    async def _reload(self) -> dict[str, Any]:
        result = await self.backend.reload()
        if not result["reloaded"]:
            raise Answer(422, result)
        return result

    async def _drain(self, do: str, body: bytes) -> dict[str, Any]:
        question = {"do": do, **_drain_arguments(body, with_duration=do == "drain")}
        answers = _some(await self.backend.change_drain(question))
        faults = [one["fault"] for one in answers if "fault" in one]
        if faults:
            raise Answer(404, {"fault": faults[0]})
        return answers[0]


def _some(answers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if not answers:
        raise Answer(503, {"fault": "no worker answers"}, [(b"retry-after", b"1")])
    return answers


def _drain_arguments(body: bytes, *, with_duration: bool) -> dict[str, Any]:
    example = 'send {"region": "us-east"}, and perhaps "upstream"' + (' and "for": "15m"' if with_duration else "")
    known = {"region", "upstream", "for"} if with_duration else {"region", "upstream"}
    try:
        given = msgspec.json.decode(body) if body else None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Answer(400, {"fault": f"the body is not JSON ({error}): {example}"}) from None
    if not isinstance(given, dict) or not isinstance(given.get("region"), str):
        raise Answer(400, {"fault": f"no region: {example}"})
    if unknown := set(given) - known:
        raise Answer(400, {"fault": f"unknown: {', '.join(sorted(unknown))}: {example}"})
    if not isinstance(given.get("upstream"), str | None):
        raise Answer(400, {"fault": f"upstream is a name: {example}"})
    arguments: dict[str, Any] = {"region": given["region"], "upstream": given.get("upstream")}
    if given.get("for") is not None:
        arguments["for_s"] = _duration(given["for"])
    return arguments


def _duration(value: Any) -> float:
    try:
        seconds = parse_duration(value)
    except UnitError as error:
        meant = f" (did you mean {error.suggestion}?)" if error.suggestion else ""
        raise Answer(400, {"fault": f"for: {error}{meant}"}) from None
    if not seconds:
        raise Answer(400, {"fault": "for: a drain for no time at all is none"})
    return seconds


__all__ = ["Admin", "AdminExchange", "Answer", "onetrip_version"]
