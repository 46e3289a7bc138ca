"""The WAN lab, load scenarios, and the comparison with peers. A file here is a command, a folder what one is made of.

| command | measures | made of |
|---|---|---|
| `python -m loadtests.lab` | nothing: it is the WAN, in network namespaces, and its programmable origins | `lab/` |
| `python -m loadtests.simulate` | routing's policies, in virtual time | `simulate/` |
| `python -m loadtests.cpu` | CPU per request, beside Envoy, HAProxy and nginx | `peers/` |
| `python -m loadtests.compare` | latencies over the lab, beside the same | `wan/` |
| `python -m loadtests.first_request` | the first request over a new connection, in round trips | |
| `python -m loadtests.bursts` | many requests at one instant through an idle pool | |
| `python -m loadtests.tls_costs` | CPU and memory of handshakes, records, stores and a reconnect storm | `tls_costs/` |
| `locust -f loadtests/locustfile.py` | users over HTTP/1.1 and HTTP/2 | `scenarios/` |
"""
