"""onetrip's sockets, clocks and files: the proxy itself."""
