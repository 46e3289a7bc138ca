"""Pure decisions: no I/O, no asyncio, and `now` is an argument."""
