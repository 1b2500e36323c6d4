"""Where all that is kept between runs lies: one rule, for the builders and for who boots.

``kvmpv run`` asks as well: this module imports next to nothing.
"""

from __future__ import annotations

import os


def folder() -> str:
    """Return kvmpv's cache folder, which need not exist; a relative XDG_CACHE_HOME counts as none.

    The XDG Base Directory Specification asks for that.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    return f"{base if base.startswith('/') else os.path.expanduser('~/.cache')}/kvmpv"
