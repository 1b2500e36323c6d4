"""A virtual machine in some thirty lines: the guest works out a greatest common divisor."""

import mmap
import sys

from kvmpv.kvm import Segment, System, host_address, uapi

CODE = bytes.fromhex(
    "85 db"  # again:  test ebx, ebx
    "74 0a"  #         jz done
    "31 d2"  #         xor edx, edx
    "f7 f3"  #         div ebx           edx = eax mod ebx
    "89 d8"  #         mov eax, ebx
    "89 d3"  #         mov ebx, edx
    "eb f2"  #         jmp again
    "e7 10"  # done:   out 0x10, eax     leaves the guest
)


def gcd(a: int, b: int) -> int:
    memory = mmap.mmap(-1, 1 << 20)
    memory[0x1000 : 0x1000 + len(CODE)] = CODE
    with System.open() as system, system.create_vm() as vm:
        vm.set_memory_slot(0, 0, len(memory), host_address(memory))
        with vm.create_vcpu(0) as vcpu:
            sregs = vcpu.sregs()
            sregs.cs, sregs.cr0 = Segment.flat_code32(), sregs.cr0 | 1  # 32-bit protected mode
            sregs.ds = sregs.es = sregs.ss = Segment.flat_data()
            vcpu.set_sregs(sregs)
            vcpu.set_regs(rip=0x1000, rflags=2, rax=a, rbx=b)
            vcpu.run()
            assert vcpu.page64[uapi.RUN_IO_WORD64] == uapi.port_word(0x10, 4)
            return vcpu.regs().rax


if __name__ == "__main__":
    first, second = (int(text) for text in sys.argv[1:3] or ("1071", "462"))
    print(f"gcd({first}, {second}) = {gcd(first, second)}")
