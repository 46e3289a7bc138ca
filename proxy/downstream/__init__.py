"""The clients' side: listeners, the connections they accept, and what stands before a request on one.

It never knows where a request goes: it makes an exchange and hands it what arrives.
"""
