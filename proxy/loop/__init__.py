"""The event loop's own: turns, timers, readiness of raw sockets. It knows nothing of what runs on it."""
