from typing import Final

QUIET: Final[float]

def rest(fd: int) -> None: ...
