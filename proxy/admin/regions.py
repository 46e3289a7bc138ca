"""An operator drains a region, or lets traffic back: what that does to a worker's upstreams.

It owns nothing. That the change outlives this worker is the program's business (`process/drains`).
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from proxy.upstream.upstream import UpstreamRuntime


def drain(
    upstreams: Iterable[UpstreamRuntime], region: str, upstream: str | None = None, seconds: float | None = None
) -> list[str]:
    """Move traffic off a region, of one `upstream` or of all; for so long, or until `undrain`. Returns the names of the
    upstreams concerned; KeyError where none has it.
    """
    now = monotonic()
    touched = _with_region(upstreams, region, upstream)
    for one in touched:
        one.report(one.balancer.drain(region, now, None if seconds is None else now + seconds))
        for pool in one.pools:
            if pool.target.region.name == region:
                pool.drain()
    return [one.name for one in touched]


def undrain(upstreams: Iterable[UpstreamRuntime], region: str, upstream: str | None = None) -> list[str]:
    """Let traffic back. As `drain` otherwise."""
    now = monotonic()
    touched = _with_region(upstreams, region, upstream)
    for one in touched:
        change = one.balancer.undrain(region, now)
        if change is not None:
            one.report(change)
    return [one.name for one in touched]


def _with_region(upstreams: Iterable[UpstreamRuntime], region: str, upstream: str | None) -> list[UpstreamRuntime]:
    every = list(upstreams)
    found = [
        one
        for one in every
        if (upstream is None or one.name == upstream) and any(r.name == region for r in one.balancer.regions)
    ]
    if not found:
        known = sorted({r.name for one in every for r in one.balancer.regions})
        raise KeyError(
            f"no upstream{f' {upstream}' if upstream else ''} has a region {region}; regions: {', '.join(known)}"
        )
    return found
