"""Guest memory: regions on sealed memfds, bounds-checked access, what to share."""

from kvmpv.memory.guest import GuestMemory, Region, create_memfd, map_regions

__all__ = ["GuestMemory", "Region", "create_memfd", "map_regions"]
