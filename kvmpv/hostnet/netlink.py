"""What the kernel says of one interface: a single question by rtnetlink(7).

Not by /sys, which shows the network namespace of who mounted it; and not by pyroute2, whose import
takes longer than the rest of a domain's start.
"""

from __future__ import annotations

import _socket
import struct

from kvmpv.errors import HostError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

HEADER: Final = struct.Struct("=IHHII")  # struct nlmsghdr
LINK: Final = struct.Struct("=BxHiII")  # struct ifinfomsg
ATTRIBUTE: Final = struct.Struct("=HH")  # struct rtattr
RTM_NEWLINK: Final = 16
RTM_GETLINK: Final = 18
NLM_F_REQUEST: Final = 1
NLA_TYPE_MASK: Final = 0x3FFF
IFF_UP: Final = 1

IFLA_IFNAME: Final = 3
IFLA_MTU: Final = 4
IFLA_MASTER: Final = 10
IFLA_LINKINFO: Final = 18
IFLA_INFO_KIND: Final = 1
IFLA_INFO_DATA: Final = 2
IFLA_TUN_OWNER: Final = 1
IFLA_TUN_TYPE: Final = 3
IFLA_TUN_MULTI_QUEUE: Final = 7
TUN_TYPE_TAP: Final = 2
ANSWER_MAX: Final = 1 << 16


class Link:
    """An interface: its index, kind (``bridge``, ``tun``, ...), MTU, and whose port it is.

    Of a tap also: whether it is one (and no tun), its owner or -1, whether it has several queues.
    """

    __slots__ = ("index", "is_tap", "kind", "master", "mtu", "multi_queue", "owner", "up")

    def __init__(self, index: int, flags: int, attributes: dict[int, bytes]) -> None:
        self.index = index
        self.up = bool(flags & IFF_UP)
        self.mtu = _number(attributes.get(IFLA_MTU, b""), 0)
        self.master = _number(attributes.get(IFLA_MASTER, b""), 0)
        info = _attributes(attributes.get(IFLA_LINKINFO, b""))
        self.kind = info.get(IFLA_INFO_KIND, b"").rstrip(b"\0").decode(errors="replace")
        data = _attributes(info.get(IFLA_INFO_DATA, b"")) if self.kind == "tun" else {}
        self.is_tap = _number(data.get(IFLA_TUN_TYPE, b""), 0) == TUN_TYPE_TAP
        self.owner = _number(data.get(IFLA_TUN_OWNER, b""), -1)
        self.multi_queue = bool(_number(data.get(IFLA_TUN_MULTI_QUEUE, b""), 0))


def find(name: str) -> Link | None:
    """Return the interface of that name, or None."""
    text = name.encode() + b"\0"
    attribute = ATTRIBUTE.pack(ATTRIBUTE.size + len(text), IFLA_IFNAME) + text
    attribute += b"\0" * (-len(attribute) % 4)
    body = LINK.pack(0, 0, 0, 0, 0) + attribute
    request = HEADER.pack(HEADER.size + len(body), RTM_GETLINK, NLM_F_REQUEST, 1, 0) + body
    channel = _socket.socket(_socket.AF_NETLINK, _socket.SOCK_RAW | _socket.SOCK_CLOEXEC)
    try:
        channel.send(request)
        answer = channel.recv(ANSWER_MAX)
    except OSError as error:
        raise HostError(f"cannot ask for interfaces: {error.strerror}") from None
    finally:
        channel.close()
    if (
        len(answer) < HEADER.size + LINK.size or HEADER.unpack_from(answer)[1] != RTM_NEWLINK
    ):  # NLMSG_ERROR: there is none
        return None
    _, _, index, flags, _ = LINK.unpack_from(answer, HEADER.size)
    return Link(index, flags, _attributes(answer[HEADER.size + LINK.size :]))


def _attributes(data: bytes) -> dict[int, bytes]:
    found = {}
    while len(data) >= ATTRIBUTE.size:
        length, kind = ATTRIBUTE.unpack_from(data)
        if length < ATTRIBUTE.size:
            break
        found[kind & NLA_TYPE_MASK] = data[ATTRIBUTE.size : length]
        data = data[(length + 3) & ~3 :]
    return found


def _number(data: bytes, missing: int) -> int:
    return int.from_bytes(data, "little") if data else missing
