"""The worker: one process that serves a domain its disks and networks."""
