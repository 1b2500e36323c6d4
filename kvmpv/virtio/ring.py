"""The device's side of a split virtqueue in plain Python (virtio 1.2, section 2.7).

It says in the plainest way what ``kvmpv/dataplane/ring.h`` does fast, and tests hold the two
together. It also serves the queues that see a few requests in a guest's life.

The driver is hostile: what it gets wrong raises ``RingBroken`` now and ever after.
"""

from __future__ import annotations

import struct

from kvmpv.virtio import spec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Final, Protocol

    class Region(Protocol):
        """A piece of guest RAM, as ``kvmpv.memory.Region`` is one."""

        @property
        def gpa(self) -> int: ...
        @property
        def size(self) -> int: ...
        @property
        def view(self) -> memoryview: ...


MAX_PIECES: Final = 1024  # of one chain, as in ring.h

# In the order of enum ring_fault in ring.h.
FAULTS: Final = (
    "sound",
    "available index jumps",
    "descriptor out of range",
    "chain loops",
    "chain too long",
    "buffer outside memory",
    "empty buffer",
    "readable behind writable",
    "bad indirect table",
    "nested indirect table",
    "chain too big",
    "head is in flight already",
    "in-flight log makes no sense",
    "chain is no request",
)
SOUND: Final = 0
AVAIL_JUMP: Final = 1
HEAD_RANGE: Final = 2
LOOP: Final = 3
TOO_LONG: Final = 4
ADDRESS: Final = 5
EMPTY_BUFFER: Final = 6
ORDER: Final = 7
INDIRECT_TABLE: Final = 8
INDIRECT_NESTED: Final = 9
TOO_BIG: Final = 10
TAKEN: Final = 11
LOG: Final = 12

_LOG: Final = struct.Struct("<QHHHH")
_LOG_DESC: Final = struct.Struct("<B5xHQ")


class RingBroken(Exception):
    """Say how a driver broke its ring; ``fault`` is an index into ``FAULTS``."""

    def __init__(self, fault: int) -> None:
        super().__init__(FAULTS[fault])
        self.fault = fault


class Chain:
    """A chain of buffers: ``readable`` by the device, and ``writable``, as pieces of memory."""

    __slots__ = ("head", "readable", "writable")

    def __init__(self, head: int) -> None:
        self.head = head
        self.readable: list[memoryview] = []
        self.writable: list[memoryview] = []

    def read(self) -> bytes:
        """Return all that the driver sent, read once."""
        return b"".join(bytes(piece) for piece in self.readable)

    def write(self, data: bytes) -> int:
        """Write into the writable pieces what they have room for; return how much that was."""
        done = 0
        for piece in self.writable:
            part = data[done : done + len(piece)]
            piece[: len(part)] = part
            done += len(part)
        return done


def log_bytes(size: int) -> int:
    """Return the size of the in-flight log of a queue of ``size``, a multiple of 64."""
    return (_LOG.size + _LOG_DESC.size * size + 63) & ~63


class DeviceRing:
    """The device's side of one queue.

    ``memory`` are the guest's regions; ``desc``, ``avail``, ``used`` the three areas themselves,
    each as large as ``spec`` says for ``size``, a power of two. ``log`` is an in-flight
    log as vhost-user has it: what a predecessor left in flight is then in ``recovered``, as heads.
    """

    __slots__ = (
        *("_avail", "_counter", "_desc", "_event_index", "_indirect", "_log", "_memory"),
        *("_published", "_seen", "_signalled", "_signalled_ever", "_used"),
        *("fault", "next_avail", "recovered", "size", "used_index"),
    )

    def __init__(
        self,
        memory: Sequence[Region],
        size: int,
        desc: memoryview,
        avail: memoryview,
        used: memoryview,
        features: int = 0,
        base: int = 0,
        log: memoryview | None = None,
    ) -> None:
        self._memory = memory
        self.size = size
        self._desc = desc
        self._avail = avail
        self._used = used
        self._indirect = bool(features >> spec.F_INDIRECT_DESC & 1)
        self._event_index = bool(features >> spec.F_EVENT_IDX & 1)
        self.fault = SOUND
        self.next_avail = base
        self.used_index = self._published = _load16(used, 2)
        self._signalled = self.used_index
        self._signalled_ever = False
        self._seen = base
        self._counter = 0
        self._log = log
        self.recovered: list[int] = []
        if log is not None:
            try:
                self._recover(log)
            except RingBroken as broken:
                self.fault = broken.fault

    # ---- taking chains

    def pop(self) -> Chain | None:
        """Return the next chain, or None. Raise ``RingBroken``."""
        if self.fault:
            raise RingBroken(self.fault)
        try:
            if not self._available():
                return None
            head = _load16(self._avail, 4 + 2 * (self.next_avail % self.size))
            if head >= self.size:
                raise RingBroken(HEAD_RANGE)
            self._take(head)
            self.next_avail = (self.next_avail + 1) & 0xFFFF
            return self._walk(head)
        except RingBroken as broken:
            self.fault = broken.fault
            raise

    def walk(self, head: int) -> Chain:
        """Return the chain that begins at a recovered head. Raise ``RingBroken``."""
        try:
            return self._walk(head)
        except RingBroken as broken:
            self.fault = broken.fault
            raise

    def unpop(self, head: int) -> None:
        """Put back the chain that was taken last."""
        self.next_avail = (self.next_avail - 1) & 0xFFFF
        if self._log is not None:
            self._log[_LOG.size + _LOG_DESC.size * head] = 0

    def _available(self) -> bool:
        if self.next_avail != self._seen:
            return True
        seen = _load16(self._avail, 2)
        # What is in flight counts: no more can be out than the queue has descriptors.
        out = (seen - self.used_index) & 0xFFFF
        if out > self.size or (self.next_avail - self.used_index) & 0xFFFF > out:
            raise RingBroken(AVAIL_JUMP)
        self._seen = seen
        return seen != self.next_avail

    def _walk(self, head: int) -> Chain:
        chain = Chain(head)
        table, entries, left = self._desc, self.size, self.size
        indirect = False
        index = head
        while True:
            if index >= entries:
                raise RingBroken(HEAD_RANGE)
            if not left:
                raise RingBroken(LOOP)
            left -= 1
            gpa, length, flags, following = spec.DESC.unpack_from(table, 16 * index)
            if flags & spec.DESC_F_INDIRECT:
                if indirect or chain.readable or chain.writable:
                    raise RingBroken(INDIRECT_NESTED)
                table = self._indirect_table(gpa, length, flags)
                entries = left = length // 16
                indirect, index = True, 0
                continue
            self._append(chain, gpa, length, bool(flags & spec.DESC_F_WRITE))
            if not flags & spec.DESC_F_NEXT:
                break
            index = following
        if sum(len(piece) for piece in chain.readable + chain.writable) > 0xFFFFFFFF:
            raise RingBroken(TOO_BIG)
        return chain

    def _indirect_table(self, gpa: int, length: int, flags: int) -> memoryview:
        if not self._indirect or not length or length % 16 or length // 16 > MAX_PIECES:
            raise RingBroken(INDIRECT_TABLE)
        if flags & spec.DESC_F_NEXT:
            raise RingBroken(INDIRECT_NESTED)
        found = self._at(gpa, length)
        if found is None or len(found) != length:
            raise RingBroken(INDIRECT_TABLE)
        return found

    def _append(self, chain: Chain, gpa: int, length: int, write: bool) -> None:
        if chain.writable and not write:
            raise RingBroken(ORDER)
        if not length:
            raise RingBroken(EMPTY_BUFFER)
        while length:
            piece = self._at(gpa, length)
            if piece is None:
                raise RingBroken(ADDRESS)
            if len(chain.readable) + len(chain.writable) == MAX_PIECES:
                raise RingBroken(TOO_LONG)
            (chain.writable if write else chain.readable).append(piece)
            gpa += len(piece)
            length -= len(piece)

    def _at(self, gpa: int, length: int) -> memoryview | None:
        """Return the memory at ``gpa`` as far as its region goes, ``length`` at most."""
        for region in self._memory:
            start = gpa - region.gpa
            if 0 <= start < region.size:
                return region.view[start : start + min(length, region.size - start)]
        return None

    # ---- giving chains back

    def push(self, head: int, written: int) -> None:
        """Note a chain as done, its first ``written`` writable bytes written."""
        spec.USED_ELEM.pack_into(self._used, 4 + 8 * (self.used_index % self.size), head, written)
        if self._log is not None:
            at = _LOG.size + _LOG_DESC.size * head
            _store16(self._log, at + 6, _load16(self._log, 12))
            _store16(self._log, 12, head)
        self.used_index = (self.used_index + 1) & 0xFFFF

    def publish(self) -> bool:
        """Show the driver what was pushed; return whether it wants a signal (2.7.7).

        Without a fence between the two, the answer may be a stale no on a processor that reorders
        stores and loads: who needs to be sure signals always.
        """
        batch = (self.used_index - self._published) & 0xFFFF
        if batch:
            _store16(self._used, 2, self.used_index)
            self._published = self.used_index
            self._log_published(batch)
        return self._should_notify()

    def _should_notify(self) -> bool:
        now, before = self._published, self._signalled
        first = not self._signalled_ever
        if now == before:
            return False
        self._signalled = now
        self._signalled_ever = True
        if not self._event_index:
            return not _load16(self._avail, 0) & spec.AVAIL_F_NO_INTERRUPT
        event = _load16(self._avail, 4 + 2 * self.size)
        return first or (now - event - 1) & 0xFFFF < (now - before) & 0xFFFF

    # ---- whether the driver is to kick us

    def disable_kicks(self) -> None:
        """Ask for no kicks; with EVENT_IDX, for one in a long time."""
        if self._event_index:
            behind = (self.next_avail - 1) & 0xFFFF
            _store16(self._used, 4 + 8 * self.size, behind)
        else:
            _store16(self._used, 0, spec.USED_F_NO_NOTIFY)

    def enable_kicks(self) -> bool:
        """Ask for a kick; return whether there is something to do already."""
        if self._event_index:
            _store16(self._used, 4 + 8 * self.size, self.next_avail)
        else:
            _store16(self._used, 0, 0)
        try:
            return self.fault != SOUND or self._available()
        except RingBroken as broken:
            self.fault = broken.fault
            return True

    # ---- the in-flight log ("Inflight I/O tracking" of QEMU's vhost-user document)

    def _take(self, head: int) -> None:
        if self._log is None:
            return
        at = _LOG.size + _LOG_DESC.size * head
        inflight, following, _ = _LOG_DESC.unpack_from(self._log, at)
        if inflight:
            raise RingBroken(TAKEN)
        _LOG_DESC.pack_into(self._log, at, 1, following, self._counter)
        self._counter += 1

    def _log_published(self, batch: int) -> None:
        if self._log is None:
            return
        try:
            self._clear_batch(self._log, batch)
            _store16(self._log, 14, self.used_index)
        except RingBroken as broken:
            self.fault = self.fault or broken.fault

    def _clear_batch(self, log: memoryview, batch: int) -> None:
        head = _load16(log, 12)
        for _ in range(batch):
            if head >= self.size:
                raise RingBroken(LOG)
            log[_LOG.size + _LOG_DESC.size * head] = 0
            head = _load16(log, _LOG.size + _LOG_DESC.size * head + 6)

    def _recover(self, log: memoryview) -> None:
        _, version, entries, _, used_index = _LOG.unpack_from(log)
        if not version:
            log[: log_bytes(self.size)] = bytes(log_bytes(self.size))
            _LOG.pack_into(log, 0, 0, 1, self.size, 0, self.used_index)
            return
        batch = (self.used_index - used_index) & 0xFFFF
        if version != 1 or entries != self.size or batch > self.size:
            raise RingBroken(LOG)
        self._clear_batch(log, batch)
        _store16(log, 14, self.used_index)
        found = []
        for head in range(self.size):
            inflight, _, counter = _LOG_DESC.unpack_from(log, _LOG.size + _LOG_DESC.size * head)
            if inflight == 1:
                found.append((counter, head))
        found.sort()
        self.recovered = [head for _, head in found]
        if found:
            self._counter = (found[-1][0] + 1) & 0xFFFFFFFFFFFFFFFF
        # All that was taken and has not been given back is in the log.
        self.next_avail = self._seen = (self.used_index + len(found)) & 0xFFFF

    def retire_log(self) -> None:
        """End the use of the log with nothing in flight: the next user finds it new."""
        if self._log is not None:
            _store16(self._log, 8, 0)
            self._log = None


# Indices that another processor reads or writes meanwhile are loaded and stored whole: struct goes
# byte by byte, and writes zeroes first.


def _load16(view: memoryview, offset: int) -> int:
    value: int = view[offset : offset + 2].cast("H")[0]
    return value


def _store16(view: memoryview, offset: int, value: int) -> None:
    view[offset : offset + 2].cast("H")[0] = value
