"""Processes and their beginnings and ends: the only place that wires the parts together."""
