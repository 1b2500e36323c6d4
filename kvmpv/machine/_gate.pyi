from collections.abc import Callable, Mapping
from typing import Final

from typing_extensions import Buffer

DOWN: Final = 1
OTHER: Final = 0
UNKNOWN: Final = -1

class Gate:
    def __init__(
        self,
        handlers: Mapping[int, Callable[[int, int, int, int, int, int], int | None]],
        index: int,
    ) -> None: ...
    @property
    def calls(self) -> dict[int, int]: ...
    def serve(self, fd: int, page: Buffer) -> int: ...
