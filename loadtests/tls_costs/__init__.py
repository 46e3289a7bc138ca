"""What TLS costs: handshakes, records, memory, stores, a reconnect storm (`python -m loadtests.tls_costs`)."""
