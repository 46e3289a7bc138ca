"""`onetrip bench`: an open-loop latency benchmark that does not omit what it could not send in time.

    cli ── plan ── engine ── pacer            when each request should start, and starting it then
                     └──── pool ── client, client_h2 ── tls     connections, phases, states
    record ── result ── report, html, compare                   histograms, the numbers, and how they are shown

Latency is counted from the instant at which the schedule wanted a request to start. Whatever delays it (a stalled
server, no free connection, this program itself) is part of it; the time since the request really started stands beside
it as the service time.
"""
