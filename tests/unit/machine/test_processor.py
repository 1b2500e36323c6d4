"""What a processor does when it is kicked."""

from __future__ import annotations

import _thread
from typing import Any, cast

import pytest

from kvmpv.errors import KvmError
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


def processor_of(machine: FakeMachine, vcpu: FakeVcpu) -> Processor:
    return Processor(cast("Machine", machine), cast("Vcpu", vcpu))


def test_guests_clock_is_told_once_of_each_pause_and_never_without_one() -> None:
    vcpu, machine = FakeVcpu(), FakeMachine()
    processor = processor_of(machine, vcpu)
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


def test_vcpu_without_a_thread_is_down(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(_thread, "start_new_thread", refuse)
    processor = processor_of(FakeMachine(), FakeVcpu())
    for _ in range(2):  # and may be tried again
        with pytest.raises(KvmError, match="thread"):
            processor.start()
        assert not processor.up
        processor.leaving = True
        processor.wait_until_down()


def test_who_waits_for_a_vcpu_to_go_down_is_not_held_by_its_next_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    processor = processor_of(FakeMachine(), FakeVcpu())
    monkeypatch.setattr(_thread, "start_new_thread", lambda *_: processor._begun.release())
    processor.start()
    processor.leaving = True
    done = _thread.allocate_lock()
    done.acquire()

    def wait() -> None:
        processor.wait_until_down()
        done.release()

    monkeypatch.undo()
    _thread.start_new_thread(wait, ())
    assert not done.acquire(timeout=0.05)
    processor.leaving = False  # as start() does
    assert done.acquire(timeout=10)
