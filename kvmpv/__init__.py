"""kvmpv: Xen's paravirtualisation on KVM, driven from Python.

import kvmpv

with kvmpv.Domain(vcpus=2) as domain:
    print(domain.exec("uname -r"))
"""

from __future__ import annotations

from kvmpv.errors import BadInput, GuestCrash, HostError, KvmpvError

__version__ = "0.1.0"

__all__ = [
    "BadInput",
    "Completed",
    "Domain",
    "End",
    "GuestCrash",
    "HostError",
    "KvmpvError",
    "__version__",
]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmpv.toolstack.domain import Completed, Domain, End


def __getattr__(name: str) -> object:
    # Late, so that whoever wants one layer does not pay for the toolstack.
    if name in ("Completed", "Domain", "End"):
        from kvmpv.toolstack import domain

        return getattr(domain, name)
    raise AttributeError(f"module 'kvmpv' has no attribute {name!r}")
