"""/dev/kvm as typed objects: a library by itself, which knows no machine. See docs/kvm.md."""

from __future__ import annotations

from ._ioctl import address as host_address
from ._ioctl import kick_signal
from .cpuid import CpuidEntry
from .records import DebugRegs, Events, Fpu, Regs, Segment, Sregs, Table
from .routing import IrqchipRoute, MsiRoute
from .stats import Stats
from .system import System
from .vcpu import Vcpu
from .vm import Clock, MsrRange, Vm

__all__ = [
    "Clock",
    "CpuidEntry",
    "DebugRegs",
    "Events",
    "Fpu",
    "IrqchipRoute",
    "MsiRoute",
    "MsrRange",
    "Regs",
    "Segment",
    "Sregs",
    "Stats",
    "System",
    "Table",
    "Vcpu",
    "Vm",
    "host_address",
    "kick_signal",
]
