"""Run a command for which a folder is read-only: ``FOLDER COMMAND...``, in a mount namespace.

virtiofsd of Debian 12 has no read-only mode; a mount that is, it cannot write to.
"""

from __future__ import annotations

import os
import sys


def _mount(*arguments: str) -> None:
    pid = os.posix_spawnp("mount", ["mount", *arguments], os.environ)
    if os.waitpid(pid, 0)[1]:
        os._exit(1)


def main(folder: str, command: list[str]) -> None:
    """Mount a folder over itself, read-only, and become the command."""
    _mount("--bind", folder, folder)
    _mount("-o", "remount,bind,ro", folder)
    os.execv(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
