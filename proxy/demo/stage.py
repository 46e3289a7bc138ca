"""What stands on the stage: the lab with its origins, a config file in a directory of its own, and the real proxy.

The proxy is a process as users start it (`onetrip serve`), and is known only by what it shows to all: its listener and
its admin address, here a Unix socket in that directory. It ends with this program, however that ends.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from prometheus_client.parser import text_string_to_metric_families

from loadtests.lab import HOME, SERVER_NAME, Lab
from proxy.admin.ask import Admin, AdminError
from proxy.bench.tls import client_context

from .scenario import NEAREST, REGIONS
from .traffic import Client

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator

    from loadtests.lab import Origin
    from loadtests.lab.lab import Mode

    from .scenario import Script

UPSTREAM: Final = "shop"
CONFIG_NAME: Final = "onetrip.yaml"
LOG_NAME: Final = "proxy.log"
_CA_NAME: Final = "lab-ca.pem"
_ROOT: Final = Path(__file__).resolve().parents[2]
_READY_WITHIN_S: Final = 20.0
_END_WITHIN_S: Final = 4.0
_POLL_S: Final = 0.02
_PR_SET_PDEATHSIG: Final = 1

_CONFIG: Final = """\
# The config of `onetrip demo`. What differs from the defaults says why; every key: docs/config.md.
listeners:
  - name: api
    address: {listen}
    upstream: {upstream}

upstreams:
  {upstream}:
    tls: {{server_name: {server_name}, ca: {ca}}}
    regions:                       # the nearest is found by latency, not by this order
{regions}
    # HTTP/1.1 has one request on a connection: in every region enough ready ones for a burst of {burst}, and no more.
    pool: {{warm: {warm}, max_connections: {warm}}}
    health: {{path: /healthz, interval: 500ms, timeout: 500ms}}
    drain: {{hold: {hold:g}s, ramp: {ramp:g}s}}  # the defaults are 10s and 30s, and nobody wants to watch that

admin: {{address: "{admin}"}}
access_log: off
shutdown: {{deadline: 2s}}
"""


class StageError(Exception):
    """The stage could not be set; the text says what is wrong and what to do."""


def config_text(script: Script, listen: str, admin: str, endpoints: dict[str, str]) -> str:
    """The config file. `endpoints`: each region's, as `host:port`."""
    lines = [f'      {name}: {{endpoints: ["{address}"]}}' for name, address in endpoints.items()]
    return _CONFIG.format(
        listen=listen,
        upstream=UPSTREAM,
        server_name=SERVER_NAME,
        ca=_CA_NAME,
        regions="\n".join(lines),
        warm=script.warm,
        burst=script.burst,
        hold=script.hold_s,
        ramp=script.ramp_s,
        admin=admin,
    )


class Stage:
    """Everything that runs beside this program, open until the script is over."""

    def __init__(self, lab: Lab, origins: dict[str, Origin], directory: Path, script: Script, port: int) -> None:
        self.lab = lab
        self.origins = origins
        self.directory = directory
        self.config_path = directory / CONFIG_NAME
        self.port = port
        self.admin_address = f"unix:{directory / 'admin.sock'}"
        self._admin = Admin(self.admin_address, None)
        self._proxy: subprocess.Popen[bytes] | None = None
        self._timeout_s = script.timeout_s
        self._context = client_context(insecure=False, ca=str(lab.ca.certificate), alpn="http/1.1")

    def __repr__(self) -> str:
        return f"<Stage {self.lab!r} {self.directory}>"

    @classmethod
    @asynccontextmanager
    async def open(cls, script: Script, mode: Mode, directory: Path) -> AsyncIterator[Stage]:
        """Set the stage: lab, origins, config file. The proxy does not run yet. Raises StageError, LabError."""
        async with AsyncExitStack() as stack:
            lab = await stack.enter_async_context(Lab.open(mode=mode, regions=REGIONS))
            lab.ca  # noqa: B018 - made before the origins ask for it, all at once
            # In the nearest region each side has an endpoint of its own: the handshakes of one must not slow the other.
            counts = {name: 2 if name == NEAREST else 1 for name in REGIONS}
            started = await asyncio.gather(*(lab.origin(name, endpoints=counts[name], tls=True) for name in REGIONS))
            stage = cls(lab, dict(zip(REGIONS, started, strict=True)), directory, script, _port(lab))
            shutil.copyfile(lab.ca.certificate, directory / _CA_NAME)
            endpoints = {name: "{}:{}".format(*lab.address(name)) for name in REGIONS}
            text = config_text(script, f"127.0.0.1:{stage.port}", stage.admin_address, endpoints)
            stage.config_path.write_text(text, encoding="utf-8")
            stack.push_async_callback(stage.stop_proxy)
            yield stage

    # The proxy

    async def start_proxy(self) -> float:
        """Start it. Returns the seconds until it said that it was ready. Raises StageError."""
        began = monotonic()
        command = [*self.lab.command_prefix(HOME), sys.executable, "-P", "-m", "proxy.cli", "serve"]
        path = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))
        with open(self.directory / LOG_NAME, "ab") as log:  # noqa: ASYNC230 - a local file, before there is traffic
            self._proxy = subprocess.Popen(  # noqa: ASYNC220, S603 - it forks and returns; the program is this one
                [*command, str(self.config_path)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONPATH": path},
                start_new_session=True,  # the terminal's ^C is for the demo, which then ends it in order
                preexec_fn=_end_with_parent,  # noqa: PLW1509 - no threads fork here; it only makes one system call
            )
        while monotonic() - began < _READY_WITHIN_S:
            try:
                await asyncio.to_thread(self._admin.ask, "GET", "/readyz")
            except AdminError:
                if self._proxy.poll() is not None:
                    raise StageError(f"the proxy ended with {self._proxy.returncode}: {self.log_tail()}") from None
                await asyncio.sleep(_POLL_S)
            else:
                return monotonic() - began
        raise StageError(f"the proxy was not ready within {_READY_WITHIN_S:g} s: {self.log_tail()}")

    async def stop_proxy(self) -> None:
        """SIGTERM, and SIGKILL where that does not help. Idempotent."""
        proxy, self._proxy = self._proxy, None
        if proxy is None:
            return
        proxy.send_signal(signal.SIGTERM)
        deadline = monotonic() + _END_WITHIN_S
        try:
            while proxy.poll() is None and monotonic() < deadline:  # noqa: ASYNC110 - a process has no event
                await asyncio.sleep(_POLL_S)
        finally:
            if proxy.poll() is None:
                proxy.kill()
                proxy.wait()

    def log_tail(self) -> str:
        """The last lines that the proxy wrote."""
        try:
            lines = (self.directory / LOG_NAME).read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            lines = []
        return "\n".join(lines[-5:]) or "it wrote nothing"

    async def status(self) -> dict[str, Any]:
        """Its `/status`. Raises AdminError."""
        found: dict[str, Any] = await asyncio.to_thread(self._admin.ask, "GET", "/status")
        return found

    async def totals(self) -> dict[str, float]:
        """Of its `/metrics`: each counter's sum by name, and by name and `result` or `code` where it has one."""
        return totals(await asyncio.to_thread(self._admin.ask, "GET", "/metrics"))

    # The sides

    def direct(self) -> Client:
        """A service without a proxy: it dials the nearest region."""
        return self._client(f"direct to {NEAREST}", self.lab.address(NEAREST, 1), SERVER_NAME, self._context)

    def proxied(self) -> Client:
        """A service with the proxy beside it."""
        return self._client("through the proxy", ("127.0.0.1", self.port), SERVER_NAME, None)

    def _client(self, name: str, address: tuple[str, int], host: str, context: ssl.SSLContext | None) -> Client:
        return Client(name, self._socket, address, host=host, timeout_s=self._timeout_s, context=context)

    def _socket(self) -> socket.socket:
        return self.lab.socket(HOME)


def totals(exposition: str) -> dict[str, float]:
    """Counters of a Prometheus exposition: `name` → sum over its labels; `name/value` for labels result and code."""
    sums: dict[str, float] = {}
    for family in text_string_to_metric_families(exposition):
        if family.type != "counter":
            continue
        for sample in family.samples:
            if not sample.name.endswith("_total"):
                continue
            labels = [sample.labels[label] for label in ("result", "code") if label in sample.labels]
            for key in (sample.name, *(f"{sample.name}/{value}" for value in labels)):
                sums[key] = sums.get(key, 0.0) + sample.value
    return sums


@asynccontextmanager
async def directory(keep: bool) -> AsyncIterator[Path]:
    """A directory for the demo's files; removed at the end unless `keep`."""
    path = Path(tempfile.mkdtemp(prefix="onetrip-demo-"))
    try:
        yield path
    finally:
        if not keep:
            shutil.rmtree(path, ignore_errors=True)


def _port(lab: Lab) -> int:
    if lab.mode == "netns":
        return 8080  # nobody else is there
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    return port


def _end_with_parent() -> None:
    """In the child: Linux sends it SIGTERM when its parent dies, by `kill -9` too."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
