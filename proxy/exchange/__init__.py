"""One request, from its head to the end of its response: exchange, attempts, the head rewritten, replies."""
