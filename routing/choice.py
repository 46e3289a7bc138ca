"""How requests are shared out between regions, and where a second attempt or a session's key goes. Pure functions.

Shares (`fill`) are those of this game, played for every request: draw a region of the tier by weight (closeness,
configured weight or order); it accepts with the probability of its admission (a ramping region 5 %, then more; a full
one what it can carry); if it refuses, draw again among the others; if all of the tier refuse, play on in the next
tier, the standby regions. What everybody refuses goes to those that take anything, in proportion: refusing for good
is for `max_in_flight`.
Admissions act on shares and not on weights because closeness spans orders of magnitude: a twentieth of the nearest
region's weight would still be nearly all of the traffic.

Affinity is weighted rendezvous hashing (Thaler and Ravishankar 1998; Schindelhauer and Schomaker 2005): a key moves
only when its own region or endpoint goes, or grows.
"""

from __future__ import annotations

from hashlib import blake2b
from math import exp, inf, log
from typing import TYPE_CHECKING, Final, TypeVar

from .drain import DrainState
from .model import Policy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .model import Upstream
    from .state import EndpointState, RegionState

SPREAD_MIN_S: Final = 0.0005
"""Differences below half a millisecond are noise, however near the regions are."""

LIMITED_MAX: Final = 6
ORDER_STEP: Final = 1e-6

SLIVER: Final = 0.005
"""A share of less than this, beside the largest, is none."""

SHARE_MOVE_S: Final = 0.5
"""How quickly shares follow costs.

What fails moves at once, through admission; what is merely slower moves smoothly.
"""

_WORN: Final = 4
_AGAIN: Final = 8
_OPERATORS: Final = 16
_NOWHERE: Final = 1 << 30
"""Ranks of a further try, the lower the better: see `_rank_retry`."""

_MASK: Final = (1 << 64) - 1

T = TypeVar("T")


def share_out(
    upstream: Upstream, regions: Sequence[RegionState], now: float, seconds: float
) -> list[tuple[RegionState, float]]:
    """Set every region's `weight` (its share) and return what requests are shared out by.

    `seconds`: since the last time, for what moves smoothly.
    """
    if upstream.policy is Policy.LATENCY:
        _approach_closeness(regions, upstream.spread, seconds)
    else:
        for region in regions:
            region.closeness = ORDER_STEP**region.index if upstream.policy is Policy.ORDERED else region.region.weight
    tiers = [
        [(region, region.closeness, region.admission(now)) for region in regions if region.standby is standby]
        for standby in (False, True)
    ]
    shares = fill(tiers) or _least_bad(regions)
    for region in regions:
        region.weight = 0.0
    for region, share in shares:
        region.weight = share
    return without_slivers(shares) if upstream.policy is Policy.LATENCY else shares


def _approach_closeness(regions: Sequence[RegionState], spread: float, seconds: float) -> None:
    for standby in (False, True):
        tier = [region for region in regions if region.standby is standby]
        if not tier:
            continue
        weights = closeness([region.cost for region in tier], spread)
        total = sum(weights)
        step = seconds / (seconds + SHARE_MOVE_S)
        for region, weight in zip(tier, weights, strict=True):
            region.closeness += (weight / total - region.closeness) * (step if region.closeness else 1.0)


def _least_bad(regions: Sequence[RegionState]) -> list[tuple[RegionState, float]]:
    """Every region is out: fail open, to those that fail least, and against an operator's word only when there is
    nothing else.
    """
    open_to = [region for region in regions if region.health.operator_until is None] or list(regions)
    weights = [
        (region, (region.closeness or ORDER_STEP) * max(0.02, 1.0 - region.health.badness) ** 4) for region in open_to
    ]
    total = sum(weight for _, weight in weights)
    return [(region, weight / total) for region, weight in weights]


def without_slivers(shares: list[tuple[T, float]]) -> list[tuple[T, float]]:
    """The same without the shares that are too small to matter: they take nobody's load, and their few requests go far.

    What is known of those regions comes from probes.
    """
    least = SLIVER * max(share for _, share in shares)
    kept = [(region, share) for region, share in shares if share >= least]
    total = sum(share for _, share in kept)
    return [(region, share / total) for region, share in kept]


def spill_order(policy: Policy, regions: Sequence[RegionState]) -> list[RegionState]:
    """The order in which regions are tried for what its own region can't take: those in use, the tier, then the
    policy's.
    """

    def rank(region: RegionState) -> tuple[bool, bool, float]:
        wanted = region.cost if policy is Policy.LATENCY else -region.closeness
        return (region.weight <= 0.0, region.standby, wanted)

    return sorted(regions, key=rank)


def alternate(
    regions: Sequence[RegionState], now: float, tried: Sequence[EndpointState], warm_only: bool
) -> EndpointState | None:
    """Where a second attempt goes; see `Balancer.pick_alternate`."""
    best: EndpointState | None = None
    best_rank, best_load = _NOWHERE, inf
    # A hedge into a queue makes the queue longer; only what flees a dead region may.
    flees = not warm_only or any(endpoint.region.health.streak or endpoint.region.quiet(now) for endpoint in tried)
    for region in regions:
        if region.in_flight >= region.max_in_flight or (region.crowded and not flees):
            continue
        tries = sum(endpoint.region is region for endpoint in tried)
        rank = _rank_hedge(region, now, tries) if warm_only else _rank_retry(region, now, tries)
        expected = _expected(region, now, 0 if warm_only else tries)
        for endpoint in region.usable:
            if now < endpoint.not_before or (warm_only and endpoint.ready < 1):
                continue
            own_rank = rank
            load = expected * (1.0 + 0.01 * endpoint.in_flight) + endpoint.load(now) * 1e-3
            if endpoint.ready < 1:
                load += 2 * endpoint.floor.value
            if endpoint in tried:
                if warm_only:
                    load *= 1.1
                else:
                    own_rank += _AGAIN
            if own_rank < best_rank or (own_rank == best_rank and load < best_load):
                best, best_rank, best_load = endpoint, own_rank, load
    return best


def _rank_retry(region: RegionState, now: float, tries: int) -> int:
    """How unwelcome a try after a failure is in this region: a matter of order, whatever the distances. The region must
    not have failed the request twice, nor look as if it failed everybody; then it should be in use.
    """
    worn = tries > 1 or region.state is DrainState.SUSPECT
    return _out_of_use(region, now) + (_WORN if worn else 0)


def _rank_hedge(region: RegionState, now: float, tries: int) -> int:
    """The same for a try beside one that is only late: two in one region are enough, if the second is late too it is no
    accident; and where something failed since the last answer, or answers stopped, it is no accident either.
    """
    doubtful = tries > 1 or region.health.streak > 0 or region.quiet(now)
    return 2 * _out_of_use(region, now) + (1 if doubtful else 0)


def _out_of_use(region: RegionState, now: float) -> int:
    """0: it takes requests; then a standby, then what was drained, and after everything what an operator drained."""
    if region.health.operator_until is not None:
        return _OPERATORS
    if region.weight:
        return 0
    return 1 if region.admission(now) > 0.0 else 2


def _expected(region: RegionState, now: float, failed: int) -> float:
    """Seconds that an attempt should take there, times how doubtful an answer is. `failed`: how many of the bad events
    in a row are this request's own, and known as such.
    """
    expected = region.likely * (1 + max(0, region.health.streak - failed))
    if region.quiet(now):
        expected *= 4.0
    if region.in_flight >= region.limit:
        expected *= 2.0
    return expected


def closeness(costs: Sequence[float], spread: float) -> list[float]:
    """e^(-(cost - best) / (spread × best)) for each cost in seconds."""
    best = min(costs)
    scale = max(spread * best, SPREAD_MIN_S)
    return [exp(-min((cost - best) / scale, 700.0)) for cost in costs]


def fill(tiers: Sequence[Sequence[tuple[T, float, float]]]) -> list[tuple[T, float]]:
    """Shares of one for (region, weight, admission) in tiers, most wanted tier first; they sum to one unless nobody
    may take anything.
    """
    shares: list[tuple[T, float]] = []
    left = 1.0
    for tier in tiers:
        part, left = _fill_tier(tier, left)
        shares += part
    taken = sum(share for _, share in shares)
    if taken <= 0.0:
        return []
    return [(region, share / taken) for region, share in shares if share > 0.0] if left > 1e-12 else shares


def _fill_tier(tier: Sequence[tuple[T, float, float]], amount: float) -> tuple[list[tuple[T, float]], float]:
    members = [(region, weight, admission) for region, weight, admission in tier if weight > 0.0 and admission > 0.0]
    if not members or amount <= 0.0:
        return [], amount
    shares = [0.0] * len(members)
    # What is still to be placed, by the set (a bit mask) of those who refused it. Only limited regions refuse, so the
    # sets are few; of more than `LIMITED_MAX` limited ones, each refusal goes straight to the open ones.
    many = sum(admission < 1.0 for _, _, admission in members) > LIMITED_MAX
    limited = sum(1 << index for index, (_, _, admission) in enumerate(members) if admission < 1.0)
    everybody = (1 << len(members)) - 1
    left = {0: amount}
    refused = 0.0
    while left:
        by, mass = left.popitem()
        total = sum(weight for index, (_, weight, _) in enumerate(members) if not by >> index & 1)
        for index, (_, weight, admission) in enumerate(members):
            if by >> index & 1:
                continue
            offered = mass * weight / total
            shares[index] += offered * admission
            following = by | (limited if many else 1 << index)
            if admission >= 1.0:
                continue
            if following == everybody:
                refused += offered * (1.0 - admission)
            else:
                left[following] = left.get(following, 0.0) + offered * (1.0 - admission)
    return [(region, share) for (region, _, _), share in zip(members, shares, strict=True)], refused


def name_key(name: str) -> int:
    """A region's or endpoint's part of the hash: the same in every process and after every restart."""
    return session_key(name.encode())


def session_key(key: bytes) -> int:
    """A session key's part of the hash."""
    return int.from_bytes(blake2b(key, digest_size=8).digest(), "little")


def _mix(value: int) -> int:
    """The finalizer of splitmix64: every bit of the input changes half of the output's."""
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & _MASK
    return value ^ (value >> 31)


def score(key: int, name: int, weight: float) -> float:
    """The weighted rendezvous score: the highest wins; a winner's chance is proportional to its weight."""
    uniform = ((_mix(key ^ name) >> 12) + 0.5) / 2.0**52  # strictly between 0 and 1
    return -weight / log(uniform)
