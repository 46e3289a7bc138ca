"""One connection that is no request: accepted, raced to a region, relayed byte by byte."""
