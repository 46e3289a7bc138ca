"""`onetrip demo`: three regions, a WAN, the proxy and live traffic on this machine.

    cli ── run ── stage       the lab's regions and origins, the config file, the proxy as a process of its own
            ├──── traffic     open-loop requests, direct and through the proxy
            ├──── scenario    the script: phases, and how long each takes
            ├──── summary     what was measured, and the promises
            ├──── report      the same on a terminal, with the config and what to try next
            └──── frame, view what it shows meanwhile: a live view on a terminal, plain lines elsewhere

Composition at the top: like `proxy.bench` this package is a command of the program and no part of the proxy. It is the
one package under `proxy` that imports `loadtests` (the WAN lab, which is part of the distribution for its sake), and
nothing in `proxy` but the command line imports it.
"""
