"""Bring this checkout into working order; what is in order already is left alone."""

from __future__ import annotations

import sys

from scripts.tools import debian, native, venv


def main() -> int:
    """Run every step; a step that cannot be done ends it with one line and status 2."""
    try:
        debian.install()
        native.ensure(venv.ensure())
    except debian.SetupError as error:
        print(f"scripts/setup: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("scripts/setup: interrupted; run it again to go on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
