"""The very code of `routing` in a world of virtual clocks, origins and faults; seeded, and minutes pass in seconds.

`virtual` is the world, `worlds` its regions, `scenarios` what happens in it; `fleets`, `mixtures` and `policies` hold
the larger ones. The command is `python -m loadtests.simulate`.
"""
