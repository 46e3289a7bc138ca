"""The first request over a brand-new connection to nginx, 80 ms away: how many round trips it takes.

Distances are measured: the least of a few, which noise only raises.
"""

from __future__ import annotations

import pytest

from loadtests.first_request import CASES, Case, measure, site

pytestmark = pytest.mark.root

BOUNDS = {
    "full handshake": (3.0, 3.2, "early: resumed:."),
    "0-RTT": (2.0, 2.1, "early:1 resumed:r"),
    "0-RTT, Fast Open": (1.0, 1.1, "early:1 resumed:r"),
    "0-RTT rejected": (3.0, 3.2, "early: resumed:."),
}


@pytest.mark.parametrize("case", [case for case in CASES if case.name in BOUNDS], ids=lambda case: case.name)
async def test_round_trips_of_a_first_request(case: Case) -> None:
    least, most, expected = BOUNDS[case.name]
    async with site() as (lab, origin):
        trips, said = await measure(lab, origin, case)
    assert set(said) == {expected}
    assert least <= min(trips) <= most, trips
