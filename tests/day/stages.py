"""The towns that rows of the key matrix are played in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from .hole import Hole
from .origin import Origin
from .ports import free_port
from .town import Config, Town, region


def _listener(name: str, **more: object) -> Config:
    return {"name": name, "address": f"127.0.0.1:{free_port()}", **more}


def web(directory: Path, workers: int) -> Town:
    """Traffic to `app`; beside it a listener `side`, one with routes, and a quiet upstream `spare` with a listener."""
    spare, hole = Origin("spare"), Hole()

    def edit(config: Config) -> None:
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
        "after": {"after": 50, "hold": "100ms", "ramp": "100ms"},
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


STAGES: dict[str, Callable[[Path, int], Town]] = {"web": web, "latency": latency, "sick": sick, "drains": drains}
