"""TLS as a sans-I/O layer, and the sessions that outlive connections."""
