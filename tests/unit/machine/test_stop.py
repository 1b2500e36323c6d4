"""A machine's end is not held up by a vCPU that does not stop."""

from __future__ import annotations

import _thread
from typing import cast

import pytest

from kvmpv.errors import KvmpvError
from kvmpv.machine import machine as module
from kvmpv.machine.machine import Machine


class StuckProcessor:
    index = 3
    up = True

    def __init__(self) -> None:
        self.idle = _thread.allocate_lock()
        self.idle.acquire()

    def kick(self) -> None: ...


class FakeMachine:
    def __init__(self) -> None:
        self.processors = {3: StuckProcessor()}

    def end(self, *_: object) -> None: ...

    def resume(self) -> None: ...


def test_vcpu_that_does_not_stop_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STOP_PATIENCE", 0.02)
    with pytest.raises(KvmpvError, match="vCPU 3 does not stop"):
        Machine.stop(cast("Machine", FakeMachine()))
