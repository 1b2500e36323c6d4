"""The host's networks: taps, bridges, NAT, addresses."""
