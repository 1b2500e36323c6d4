"""Virtio: numbers, the ring, and the state of a device on the VMM's side; no transport."""
