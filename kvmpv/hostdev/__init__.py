"""The host's disks, and what they are used for."""
