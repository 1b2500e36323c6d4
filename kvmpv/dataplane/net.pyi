from collections.abc import Iterable

class Plane:
    def set_memory(self, regions: Iterable[tuple[int, int, int]]) -> None: ...
    def set_log(self, address: int, size: int) -> None: ...
    def limit(self, bps: int, bps_burst: int, pps: int, pps_burst: int) -> None: ...

class Pair:
    def __init__(self, plane: Plane, tap: int) -> None: ...

class Queue:
    def __init__(
        self,
        pair: Pair,
        transmit: bool,
        size: int,
        desc: int,
        avail: int,
        used: int,
        features: int = 0,
        base: int = -1,
        kick: int = -1,
        call: int = -1,
        err: int = -1,
        broken: int = -1,
        header: int = 12,
        mergeable: bool = True,
    ) -> None: ...
    def start(self) -> None: ...
    def stop(self) -> int: ...
    discard: bool
    @property
    def stalled(self) -> bool: ...
    @property
    def fault(self) -> str: ...
    @property
    def counters(self) -> dict[str, int]: ...
