"""The table of faults."""

from __future__ import annotations

from proxy.errors import Blame, Kind


def test_every_kind_says_whom_it_blames() -> None:
    """A client's faults are its request's; what is ours is the proxy's."""
    sources = {kind.source.value: set[Blame]() for kind in Kind}
    for kind in Kind:
        sources[kind.source.value].add(kind.blame)
    assert sources["downstream"] == {Blame.REQUEST}
    assert sources["internal"] == {Blame.PROXY}
    assert sources["upstream"] == {Blame.ENDPOINT, Blame.REQUEST}
    assert {kind for kind in Kind if kind.source.value == "upstream" and kind.blame is Blame.REQUEST} == {
        Kind.UPGRADE_FAILED,
        Kind.RESPONSE_HEAD_TOO_LARGE,
    }
