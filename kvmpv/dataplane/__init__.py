"""The compiled loops that move a guest's requests: rings, blocks, packets."""
