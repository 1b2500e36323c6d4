"""/dev/kvm: what this host's KVM can do, and the making of virtual machines."""

from __future__ import annotations

import os
from struct import Struct

from kvmpv.errors import HostError, KvmError

from . import cpuid, uapi
from ._call import big, call
from ._handle import Handle
from ._ioctl import ioctl as _ioctl
from .vm import Vm

_MSR_LIST = Struct(uapi.FORMAT_MSR_LIST)
_EINTR, _E2BIG = 4, 7
_CPUID_ENTRIES = 256  # the kernel's own limit (KVM_MAX_CPUID_ENTRIES)

_LOAD = "load it with 'modprobe kvm_intel' or 'modprobe kvm_amd', and see that the firmware"
_OPEN_HINTS = {
    2: f"{_LOAD} has virtualisation switched on",  # ENOENT
    13: "become a member of the group that owns it, usually 'kvm', and log in again",  # EACCES
    19: f"{_LOAD} has virtualisation switched on",  # ENODEV
}


class System(Handle):
    """Talk to /dev/kvm through a descriptor that this object owns from now on.

    Raises HostError if the descriptor is not KVM's or speaks another version of its interface.
    """

    __slots__ = ("api_version", "run_page_size")

    def __init__(self, fd: int) -> None:
        super().__init__(fd)
        version = _ioctl(fd, uapi.KVM_GET_API_VERSION)
        if version != uapi.KVM_API_VERSION:
            self.close()
            raise _not_ours(version)
        self.api_version = version
        self.run_page_size = call("KVM_GET_VCPU_MMAP_SIZE", fd, uapi.KVM_GET_VCPU_MMAP_SIZE)

    @classmethod
    def open(cls, path: str = "/dev/kvm") -> System:
        """Open the device; raises HostError with a remedy if that cannot be."""
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            hint = _OPEN_HINTS.get(error.errno or 0, "")
            raise HostError(f"{path}: {error.strerror}", hint=hint) from None
        try:
            return cls(fd)
        except HostError as error:
            raise HostError(f"{path}: {error.message}", hint=error.hint) from None

    def check_extension(self, cap: int) -> int:
        """Return what a capability (``KVM_CAP_*``) is worth: 0 is no; ask the Vm where it may."""
        return call("KVM_CHECK_EXTENSION", self.fd, uapi.KVM_CHECK_EXTENSION, cap)

    def capabilities(self) -> dict[str, int]:
        """Return what each capability that uapi knows is worth, by its name."""
        caps = [name for name in vars(uapi) if name.startswith("KVM_CAP_")]
        return {name: self.check_extension(getattr(uapi, name)) for name in caps}

    def create_vm(self, kind: int = 0) -> Vm:
        """Make an empty virtual machine."""
        while True:
            fd = _ioctl(self.fd, uapi.KVM_CREATE_VM, kind)
            if fd >= 0:
                return Vm(fd, self.run_page_size)
            if fd != -_EINTR:  # a signal while the kernel starts a thread of its own
                raise KvmError("KVM_CREATE_VM", -fd)

    def supported_cpuid(self) -> list[cpuid.CpuidEntry]:
        """Return what this KVM can show to a guest; the usual start of a vCPU's table."""
        table = cpuid.buffer(_CPUID_ENTRIES)
        big("KVM_GET_SUPPORTED_CPUID", self.fd, uapi.KVM_GET_SUPPORTED_CPUID, table)
        return cpuid.decode(table)

    def msr_indices(self) -> list[int]:
        """Return the MSRs that hold a guest's state: what to save and restore."""
        return self._msr_list("KVM_GET_MSR_INDEX_LIST", uapi.KVM_GET_MSR_INDEX_LIST)

    def feature_msrs(self) -> list[int]:
        """Return the MSRs that describe what this KVM can do."""
        name = "KVM_GET_MSR_FEATURE_INDEX_LIST"
        return self._msr_list(name, uapi.KVM_GET_MSR_FEATURE_INDEX_LIST)

    def _msr_list(self, what: str, request: int) -> list[int]:
        head = bytearray(_MSR_LIST.size)
        result = _ioctl(self.fd, request, head)  # how many there are, with E2BIG
        if result < 0 and result != -_E2BIG:
            raise KvmError(what, -result)
        (count,) = _MSR_LIST.unpack(head)
        table = bytearray(_MSR_LIST.size + 4 * count)
        _MSR_LIST.pack_into(table, 0, count)
        big(what, self.fd, request, table)
        return memoryview(table)[_MSR_LIST.size :].cast("I").tolist()


def _not_ours(version: int) -> HostError:
    if version < 0:
        return HostError("not a KVM device", hint="give the path of this host's /dev/kvm")
    return HostError(
        f"KVM speaks version {version} of its interface, not {uapi.KVM_API_VERSION}",
        hint="every Linux since 2.6.22 speaks 12: boot one",
    )
