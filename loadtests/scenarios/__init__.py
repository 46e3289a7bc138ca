"""The Locust load tests: what `loadtests/locustfile.py` is made of. See docs/load.md.

locustfile ── plan        scenarios as values: how many users when, what goes wrong when
      ├────── users       users over HTTP/1.1 and HTTP/2 ── h2_client   on this project's own codec
      ├────── driver      says at the right time that something goes wrong, and makes it so
      │          └─ stage the lab and a proxy in a process of their own
      └────── timeline    latency second by second, with the faults marked
"""
