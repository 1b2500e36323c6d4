"""What a processor does when it is kicked."""

from __future__ import annotations

import _thread
from typing import cast

from kvmpv.kvm import Vcpu
from kvmpv.machine.machine import Machine
from kvmpv.machine.processor import Processor


class FakeVcpu:
    index = 0

    def __init__(self) -> None:
        self.clock_told = 0

    def sregs(self) -> None: ...

    def lapic(self) -> None: ...

    def sync(self, _what: int) -> None: ...

    def clear_kick(self) -> None: ...

    def kvmclock_ctrl(self) -> bool:
        self.clock_told += 1
        return True


class FakeMachine:
    ending = False
    paused = True

    def __init__(self) -> None:
        self.resume_lock = _thread.allocate_lock()
        self.resume_lock.acquire()


def test_guests_clock_is_told_once_of_each_pause_and_never_without_one() -> None:
    vcpu, machine = FakeVcpu(), FakeMachine()
    processor = Processor(cast("Machine", machine), cast("Vcpu", vcpu))
    processor.idle.acquire()
    done = _thread.allocate_lock()
    done.acquire()

    def kicked() -> None:
        assert processor._attend()
        done.release()

    _thread.start_new_thread(kicked, ())
    assert processor.idle.acquire(timeout=10)  # it has parked
    assert vcpu.clock_told == 0
    machine.paused = False
    processor.idle.release()
    machine.resume_lock.release()
    assert done.acquire(timeout=10)
    assert vcpu.clock_told == 1
    assert processor._attend()
    assert vcpu.clock_told == 1
