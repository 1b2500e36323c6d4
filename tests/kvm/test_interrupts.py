"""Interrupts and doorbells: irqfd, MSIs, routes, the in-kernel controllers, ioeventfd."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from kvmpv.errors import KvmError
from kvmpv.kvm import IrqchipRoute, MsiRoute, uapi
from tests.kvm.guest import EOI_IRET, LAPIC, LAPIC_ON, MMIO, VECTOR, Guest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# Switch the LAPIC on; out 0x10: ready; sti; hlt; out 0x11: woken; cli; jmp back to "ready".
WAIT = LAPIC_ON + bytes.fromhex("e610  fb f4  e611  fa  ebf7")
READY, WOKEN, HANDLED = 0x10, 0x11, 0x12
HANDLER = bytes.fromhex("e612") + EOI_IRET  # out 0x12, al


@pytest.fixture
def event() -> Iterator[int]:
    fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    yield fd
    os.close(fd)


def ports(one: Guest, count: int) -> list[int]:
    return [one.port()[0] for _ in range(count)]


@pytest.mark.parametrize("irqchip", ["split", "full"])
def test_irqfd_becomes_the_routed_message(
    guest: Callable[..., Guest], event: int, irqchip: str
) -> None:
    one = guest(WAIT, irqchip, HANDLER)
    one.vm.set_routing([MsiRoute(24, LAPIC, VECTOR)])
    one.vm.irqfd(event, 24)
    assert ports(one, 1) == [READY]
    os.eventfd_write(event, 1)
    assert ports(one, 3) == [HANDLED, WOKEN, READY]
    one.vm.irqfd(event, 24, deassign=True)
    os.eventfd_write(event, 1)
    assert os.eventfd_read(event) == 1  # nobody else took it


def test_signal_msi_tells_whether_it_was_delivered(guest: Callable[..., Guest]) -> None:
    one = guest(WAIT, "split", HANDLER)
    assert one.vm.signal_msi(LAPIC, VECTOR) == 0  # the LAPIC is still off
    assert ports(one, 1) == [READY]
    assert one.vm.signal_msi(LAPIC, VECTOR) > 0
    assert ports(one, 3) == [HANDLED, WOKEN, READY]


def test_a_new_table_replaces_all_routes(guest: Callable[..., Guest], event: int) -> None:
    one = guest(WAIT, "split", HANDLER)
    one.vm.set_routing([MsiRoute(gsi, LAPIC, VECTOR) for gsi in range(64)])
    one.vm.irqfd(event, 40)
    one.vm.set_routing([MsiRoute(40, LAPIC, VECTOR + 1), MsiRoute(41, LAPIC, VECTOR)])
    one.vm.set_routing([MsiRoute(40, LAPIC, VECTOR)])
    assert ports(one, 1) == [READY]
    os.eventfd_write(event, 1)
    assert ports(one, 2) == [HANDLED, WOKEN]


def test_routes_beyond_the_limit_are_refused(guest: Callable[..., Guest]) -> None:
    one = guest(WAIT, "split")
    with pytest.raises(KvmError) as caught:
        one.vm.set_routing([MsiRoute(gsi, LAPIC, VECTOR) for gsi in range(4097)])
    assert caught.value.errno == 22


def test_an_ioapic_pin_interrupts(guest: Callable[..., Guest]) -> None:
    one = guest(WAIT, "full", HANDLER)
    one.vm.set_routing([IrqchipRoute(5, uapi.KVM_IRQCHIP_IOAPIC, 5)])
    state = bytearray(one.vm.irqchip(uapi.KVM_IRQCHIP_IOAPIC))
    at = 24 + 8 * 5  # the redirection entry of pin 5: edge, fixed, to APIC 0, not masked
    state[at : at + 8] = VECTOR.to_bytes(8, "little")
    one.vm.set_irqchip(uapi.KVM_IRQCHIP_IOAPIC, bytes(state))
    assert ports(one, 1) == [READY]
    one.vm.irq_line(5, 1)
    one.vm.irq_line(5, 0)
    assert ports(one, 2) == [HANDLED, WOKEN]


def test_the_timer_chips_state_round_trips(guest: Callable[..., Guest]) -> None:
    one = guest("f4", "full")
    one.vm.create_pit()
    state = one.vm.pit()
    one.vm.set_pit(state)
    assert len(state) == uapi.SIZE_PIT_STATE2


def test_interrupt_is_queued_where_no_controller_is(guest: Callable[..., Guest]) -> None:
    one = guest("fb 90 f4 e611", handler=bytes.fromhex("e612 48cf"))  # sti; nop; hlt; out 0x11
    one.vcpu.interrupt(VECTOR)
    assert ports(one, 1) == [HANDLED]
    assert one.exit_reason() == uapi.KVM_EXIT_HLT


def test_nmi_reaches_its_vector(guest: Callable[..., Guest]) -> None:
    one = guest("e610 e611", "split")
    gate = bytes(one.memory[0x5000 + 16 * VECTOR : 0x5010 + 16 * VECTOR])
    one.load(0x5000 + 16 * 2, gate)
    one.load(0x2000, bytes.fromhex("e612 48cf"))
    assert ports(one, 1) == [READY]
    one.vcpu.nmi()
    assert ports(one, 2) == [HANDLED, WOKEN]


def test_ioeventfd_takes_an_mmio_write_without_an_exit(
    guest: Callable[..., Guest], event: int
) -> None:
    one = guest("a30000300000000000  e610")  # mov [MMIO], eax; out 0x10, al
    one.vm.ioeventfd(event, MMIO, 4)
    assert ports(one, 1) == [READY]
    assert os.eventfd_read(event) == 1


def test_ioeventfd_matches_data_on_a_port(guest: Callable[..., Guest], event: int) -> None:
    # mov eax, 7; out 0x20, eax; mov eax, 8; out 0x20, eax
    one = guest("b807000000 e720  b808000000 e720")
    one.vm.ioeventfd(event, 0x20, 4, datamatch=7, pio=True)
    assert one.port() == (0x20, 8)
    assert os.eventfd_read(event) == 1


def test_ioeventfd_taken_away_exits_again(guest: Callable[..., Guest], event: int) -> None:
    one = guest("a30000300000000000  a30000300000000000")
    one.vm.ioeventfd(event, MMIO, 0)
    one.vm.ioeventfd(event, MMIO, 0, deassign=True)
    assert one.exit_reason() == uapi.KVM_EXIT_MMIO
    with pytest.raises(KvmError):
        one.vm.ioeventfd(event, MMIO, 0, deassign=True)


def test_an_irqfd_needs_a_controller(guest: Callable[..., Guest], event: int) -> None:
    one = guest("f4")
    with pytest.raises(KvmError):
        one.vm.irqfd(event, 24)
