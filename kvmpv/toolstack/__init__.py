"""Domains from outside their processes: configuration, start, control, end."""
