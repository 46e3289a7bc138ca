"""The comparison over the WAN lab: Envoy, HAProxy, nginx and onetrip in the same scenarios. See docs/comparison.md.

compare (the command) ── scenarios ── site      the lab's regions and origins, what goes wrong in them
                           │     └── proxies    one proxy inside home: its config, process, readiness
                           │     └── load       the open loop from home
                           ├── evaluate         samples → figures, as multiples of a round trip
                           └── report, plots    JSON, Markdown, SVG
"""
