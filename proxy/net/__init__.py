"""Sockets and names: dialling, listening, what the kernel tells of a connection. No HTTP, no pool."""
