"""The towns that rows of the key matrix are played in."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path

from loadtests.lab.certificates import issue, make_ca
from tests.proxy.e2e_tls.tls_harness import Files

from .early import EarlyOrigin
from .hole import Hole
from .origin import EchoOrigin, Origin
from .ports import free_port
from .town import Config, Town, region
from .traffic import Traffic


def _listener(name: str, **more: object) -> Config:
    return {"name": name, "address": f"127.0.0.1:{free_port()}", **more}


def web(directory: Path, workers: int) -> Town:
    """Traffic to `app`; beside it a listener `side`, one with routes, and a quiet upstream `spare` with a listener."""
    spare, hole = Origin("spare"), Hole()

    def edit(config: Config) -> None:
        del config["upstreams"]["app"]["hedge"]
        config["listeners"] += [
            _listener("side", upstream="app"),
            _listener(
                "routes",
                routes=[{"match": {"host": "town.test"}, "upstream": "app"}, {"match": {}, "upstream": "spare"}],
            ),
            _listener("spare", upstream="spare"),
        ]
        config["upstreams"]["spare"] = {"regions": {"spare": region(spare)}, "retry": "off", "hedge": "off"}
        config["upstreams"]["void"] = {
            "regions": {"void": {"endpoints": [hole.endpoint]}},
            "timeouts": {"connect": "3s"},
            "retry": "off",
        }

    town = Town(directory, workers=workers, edit=edit)
    town.add(spare, hole)
    return town


def latency(directory: Path, workers: int) -> Town:
    """Regions that take 40, 60 and 150 ms, chosen by latency."""

    def edit(config: Config) -> None:
        config["upstreams"]["app"]["routing"] = {"policy": "latency"}
        del config["upstreams"]["app"]["hedge"]
        config["listeners"] += [
            _listener("side", upstream="app"),
            _listener("routes", routes=[{"match": {}, "upstream": "app"}]),
        ]

    town = Town(directory, workers=workers, edit=edit)
    town.near.delay_s, town.mid.delay_s, town.far.delay_s = 0.04, 0.06, 0.15
    return town


def sick(directory: Path, workers: int) -> Town:
    """Checks of the far region are answered 200, the others' 204."""
    town = Town(directory, workers=workers)
    town.near.health = town.mid.health = 204
    return town


def drains(directory: Path, workers: int) -> Town:
    """A quiet upstream of two regions for each key of `drain`."""
    pairs = {name: [Origin(f"{name}-{number}") for number in (1, 2)] for name in ("after", "hold", "ramp", "most")}
    settings = {
        "after": {"after": 50, "hold": "1m", "ramp": "100ms"},
        "hold": {"after": 1, "hold": "1m", "ramp": "100ms"},
        "ramp": {"after": 1, "hold": "100ms", "ramp": "1m"},
        "most": {"after": 1, "hold": "1m", "ramp": "100ms"},
    }

    def edit(config: Config) -> None:
        for name, (one, two) in pairs.items():
            config["listeners"].append(_listener(name, upstream=name))
            config["upstreams"][name] = {
                "routing": {"policy": "ordered"},
                "regions": {"one": region(one), "two": region(two)},
                "retry": "off",
                "hedge": "off",
                "drain": settings[name],
                "health": {"interval": "100ms"},
            }

    town = Town(directory, workers=workers, edit=edit)
    for pair in pairs.values():
        town.add(*pair)
    return town


def _server(origin: Origin, pair: tuple[str, str], clients: str) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=clients)
    context.load_cert_chain(*pair)
    context.set_alpn_protocols(["http/1.1"])
    context.verify_mode = ssl.CERT_OPTIONAL

    def asked(connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        origin.names.append(name)

    context.sni_callback = asked
    return context


def tls(directory: Path, workers: int) -> Town:
    """TLS on both sides. The far region's origin has another authority and SPIFFE id, and no curve but P-256."""
    directory.mkdir(parents=True)
    ours, theirs = make_ca(directory, "ours"), make_ca(directory, "theirs")
    names = ["localhost", "127.0.0.1", "alt.test"]
    near = issue(ours, names=names, spiffe="spiffe://town.test/ours", file_name="near")
    far = issue(theirs, names=names, spiffe="spiffe://town.test/theirs", file_name="far")
    other = issue(ours, names=["localhost", "other.test"], file_name="other")
    both = directory / "both.pem"
    both.write_bytes(ours.certificate.read_bytes() + theirs.certificate.read_bytes())
    early = EarlyOrigin(Files(ours, near, directory))
    pair = {"certificate": str(near.certificate), "key": str(near.key)}

    def edit(config: Config) -> None:
        config["listeners"][0]["tls"] = {"certificates": [pair]}
        config["listeners"] += [
            _listener("side", upstream="app", tls={"certificates": [pair]}),
            _listener("early", routes=[{"match": {}, "upstream": "early"}]),
        ]
        config["upstreams"]["app"]["tls"] = {"ca": str(both)}
        config["upstreams"]["early"] = {
            "regions": {"early": {"endpoints": [early.endpoint]}},
            "tls": {"ca": str(ours.certificate)},
            "pool": {"warm": 0},
        }

    town = Town(directory, workers=workers, edit=edit)
    town.add(early)
    town.authority = ours
    town.files = {
        "ca": str(ours.certificate),
        "both": str(both),
        "other_certificate": str(other.certificate),
        "other_key": str(other.key),
        "client_certificate": str(near.certificate),
        "client_key": str(near.key),
    }
    for origin, issued in ((town.near, near), (town.mid, near), (town.far, far)):
        origin.tls = _server(origin, (str(issued.certificate), str(issued.key)), str(both))
    town.far.tls.set_ecdh_curve("prime256v1")
    town.traffic = Traffic(town.program.port(), authority=str(ours.certificate))
    return town


def bytes_(directory: Path, workers: int) -> Town:
    """A TCP listener beside the HTTP one."""
    echo = EchoOrigin("echo")

    def edit(config: Config) -> None:
        config["listeners"].append(_listener("bytes", protocol="tcp", upstream="bytes"))
        config["upstreams"]["bytes"] = {"protocol": "tcp", "regions": {"bytes": region(echo)}}

    town = Town(directory, workers=workers, edit=edit)
    town.add(echo)
    return town


STAGES: dict[str, Callable[[Path, int], Town]] = {
    "web": web,
    "latency": latency,
    "sick": sick,
    "drains": drains,
    "tls": tls,
    "bytes": bytes_,
}
