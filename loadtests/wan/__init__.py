"""The comparison over the WAN lab: Envoy, HAProxy, nginx and onetrip in the same scenarios. See docs/comparison.md.

compare (the command) ── catalogue ── scenarios ── site          the lab, and one proxy at a time inside home
                           │                └──── load          the open loop from home
                           │                place ── envoy, haproxy, nginx, onetrip      their configs
                           ├── evaluate     samples → figures
                           └── report, plots     Markdown, JSON, SVG; multiples of a round trip
"""
