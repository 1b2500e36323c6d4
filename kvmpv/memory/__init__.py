"""Guest memory: regions on sealed memfds, bounds-checked access, what to share."""

from kvmpv.memory.guest import GuestMemory, Region, map_regions
from kvmpv.memory.memfd import create_memfd, is_sealed

__all__ = ["GuestMemory", "Region", "create_memfd", "is_sealed", "map_regions"]
