"""Settings of the kernel's network: changed where they must be, and put back as they were."""

from __future__ import annotations

import os

from kvmpv.errors import HostError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

ROOT: Final = "/proc/sys"
IPV4: Final = "net/ipv4/ip_forward"
IPV6: Final = "net/ipv6/conf/all/forwarding"
REDIRECTS: Final = "net/ipv4/conf/all/accept_redirects"


def get(key: str) -> str:
    """Return a setting, or "" where this kernel has none of that name."""
    try:
        with open(f"{ROOT}/{key}") as file:
            return file.read().strip()
    except OSError:
        return ""


def put(key: str, value: str) -> None:
    """Change a setting; raise ``HostError`` where that is not allowed."""
    try:
        with open(f"{ROOT}/{key}", "w") as file:
            file.write(value)
    except OSError as error:
        what = f"cannot set {key.replace('/', '.')} to {value}: {error.strerror}"
        raise HostError(what, hint="set it yourself with sysctl, as root") from None


def put_back(old: dict[str, str]) -> None:
    """Change settings back; one whose interface is gone needs nothing."""
    for key, value in reversed(old.items()):
        if get(key):
            put(key, value)


def has_ipv6() -> bool:
    """Tell whether this host speaks IPv6 at all."""
    return get("net/ipv6/conf/all/disable_ipv6") == "0"


def new_ones_have_ipv6() -> bool:
    """Tell whether an interface that is made now speaks IPv6."""
    return has_ipv6() and get("net/ipv6/conf/default/disable_ipv6") == "0"


def for_forwarding() -> dict[str, str]:
    """Say which settings change before this host forwards packets: the old values by key.

    A host that forwards IPv6 takes no more router advertisements on interfaces with accept_ra 1,
    and so would lose its own default route: there it must be 2. And the kernel changes more than
    it is told (inet_forward_change, addrconf_forward_change): each interface's own forwarding, that
    of new ones, and whether redirects are taken.
    """
    old = {}
    if get(IPV4) == "0":
        if get(REDIRECTS) == "0":
            old[REDIRECTS] = "0"
        old |= _of_interfaces("net/ipv4/conf", "forwarding")
        old[IPV4] = "0"
    if has_ipv6() and get(IPV6) == "0":
        old |= _of_interfaces("net/ipv6/conf", "accept_ra")
        old |= _of_interfaces("net/ipv6/conf", "forwarding")
        old[IPV6] = "0"
    return old


def _of_interfaces(folder: str, name: str) -> dict[str, str]:
    """Return the settings of that name which are 1 for an interface alone, or for new ones."""
    keys = [
        f"{folder}/{interface}/{name}"
        for interface in sorted(os.listdir(f"{ROOT}/{folder}"))
        if interface not in ("all", "lo") and (interface, name) != ("default", "accept_ra")
    ]
    return {key: "1" for key in keys if get(key) == "1"}


def forward(old: dict[str, str]) -> None:
    """Make the changes that ``for_forwarding`` named."""
    for key in old:
        if get(key) and key != REDIRECTS:
            put(key, "2" if key.endswith("accept_ra") else "1")
