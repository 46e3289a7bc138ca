"""The origins' side: an upstream, its pools and connections, and what keeps routing's picture of them fresh."""
