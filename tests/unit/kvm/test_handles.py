"""What is checked before a KVM is asked, and what a wrong one is told."""

from __future__ import annotations

import errno
import os
import struct
from typing import TYPE_CHECKING

import pytest

from kvmpv.errors import BadInput, HostError, KvmError
from kvmpv.kvm import Stats, Vm, _ioctl, host_address, system, uapi

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(("answer", "said"), [(11, "version 11"), (-errno.ENOTTY, "not a KVM")])
def test_only_version_12_is_kvms(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, answer: int, said: str
) -> None:
    monkeypatch.setattr(system, "_ioctl", lambda *_: answer)
    fd = os.open(tmp_path, os.O_RDONLY)
    with pytest.raises(HostError, match=said) as caught:
        system.System(fd)
    assert caught.value.hint
    with pytest.raises(OSError, match="Bad file"):  # it was the object's, and is closed
        os.fstat(fd)


def test_a_closed_machine_says_bad_descriptor() -> None:
    vm = Vm(-1, 12288)
    for use in (vm.get_clock, vm.create_irqchip, lambda: vm.signal_msi(0, 0)):
        with pytest.raises(KvmError) as caught:
            use()
        assert caught.value.errno == errno.EBADF
    vm.close()


def test_the_dirty_log_of_an_unknown_slot_is_refused() -> None:
    with pytest.raises(BadInput, match="slot 3 has 0 pages, not 1"):
        Vm(-1, 12288).dirty_log(3, 1)


def test_ioctl_returns_errors_and_takes_numbers_and_buffers() -> None:
    reading, writing = os.pipe()
    fionread, cleared = 0x541B, bytearray(b"\xff" * 4)
    try:
        os.write(writing, b"abc")
        assert _ioctl.ioctl(reading, fionread, cleared) == 0
        assert struct.unpack("<i", cleared) == (3,)
        assert _ioctl.ioctl(reading, uapi.KVM_RUN, 0) == -errno.ENOTTY
        assert _ioctl.ioctl(-1, fionread, cleared) == -errno.EBADF
        assert _ioctl.run(-1) == -errno.EBADF
    finally:
        os.close(reading)
        os.close(writing)


def test_ioctl_refuses_what_the_kernel_could_not_write_to() -> None:
    with pytest.raises((BufferError, TypeError)):
        _ioctl.ioctl(-1, 0, b"read-only")
    with pytest.raises(OverflowError):
        _ioctl.ioctl(-1, 0, 1 << 64)


def test_host_address_is_where_the_buffer_is() -> None:
    buffer = bytearray(16)
    assert host_address(memoryview(buffer)[4:]) == host_address(buffer) + 4


def test_kick_signal_refuses_what_cannot_be_caught() -> None:
    assert _ioctl.kick_signal(9) == -errno.EINVAL


def made_stats(tmp_path: Path, flags: int, values: tuple[int, ...]) -> Stats:
    """Lay a statistics file out as the kernel does, with one statistic."""
    name = b"made".ljust(8, b"\0")
    descriptor = struct.pack("<IhHII", flags, -9, len(values), 0, 0) + name
    header = struct.pack("<6I", 0, 8, 1, 24, 32, 32 + len(descriptor))
    path = tmp_path / "stats"
    path.write_bytes(
        header + b"kvm-1\0\0\0" + descriptor + struct.pack(f"<{len(values)}Q", *values)
    )
    return Stats(os.open(path, os.O_RDONLY))


def test_stats_are_decoded_from_their_description(tmp_path: Path) -> None:
    with made_stats(tmp_path, 0x021, (7,)) as stats:
        assert stats.id == "kvm-1"
        assert stats.read() == {"made": 7}
        (one,) = stats.descriptors
    assert (one.kind, one.unit, one.base, one.exponent) == ("instant", "seconds", 10, -9)
    assert repr(one) == "<made: instant seconds x 10^-9, 1 value(s)>"
    assert stats.fd == -1


def test_histograms_have_many_values_and_unknown_kinds_a_number(tmp_path: Path) -> None:
    with made_stats(tmp_path, 0x1FD, (1, 2, 3)) as stats:
        assert stats.read() == {}
        assert stats.values() == {"made": (1, 2, 3)}
        assert stats.descriptors[0].kind == "unknown 13"
        assert stats.descriptors[0].unit == "unknown 15"
        assert stats.descriptors[0].base == 2
