"""What this host can do: findings, each measured, each with its remedy."""

from __future__ import annotations

import os
import sys

from kvmpv.errors import HostError
from kvmpv.toolstack import defaults, host_devices, vmm
from kvmpv.toolstack.finding import Finding

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

PROBE: Final = os.path.join(os.path.dirname(vmm.PROGRAM), "probe.py")
SHMEM_THP: Final = "/sys/kernel/mm/transparent_hugepage/shmem_enabled"

# A processor needs a nanosecond or two for an instruction, QEMU's TCG three, an emulator in the
# kernel half a microsecond.
EMULATED_NS: Final = 100.0

# What the probe says before it tries what may end it.
PROBED: Final = frozenset(("missing", "max_vcpus", "guest", "ns_per_instruction"))


def can_run_linux(findings: list[Finding]) -> bool:
    """Say whether Linux guests run on this host."""
    return all(finding.good for finding in findings if finding.needed)


def findings() -> list[Finding]:
    """Look at this host; takes a tenth of a second."""
    found = _kvm()
    found.append(_huge_pages())
    found += [_built("patched kernel", "vmlinux"), _built("small root file system", "initrd.cpio")]
    return found + host_devices.findings()


def mend(found: list[Finding]) -> list[str]:
    """Do what ``--fix`` may do; return what was done, one line each.

    Raises HostError where it is not allowed.
    """
    done = []
    for finding in found:
        if finding.fix is not None:
            path, content = finding.fix
            try:
                with open(path, "w") as file:
                    file.write(content)
            except OSError as error:
                raise HostError(f"cannot write {path}: {error.strerror}", hint="be root") from None
            done.append(f"wrote {content!r} to {path}")
    return done


def _kvm() -> list[Finding]:
    try:
        fd = vmm.open_kvm()
    except HostError as error:
        return [Finding("/dev/kvm", False, error.message, error.hint, needed=True)]
    found = [Finding("/dev/kvm", True, "opened", needed=True)]
    try:
        facts = _probe(fd)
    finally:
        os.close(fd)
    if "error" in facts or not facts.keys() >= PROBED:
        seen = facts.get("error", "the probe died")
        remedy = "boot Linux 5.10 or newer with KVM, or use scripts/devbox"
        return [*found, Finding("KVM interface", False, seen, remedy, needed=True)]
    missing = facts["missing"]
    return [
        *found,
        Finding(
            "KVM capabilities",
            not missing,
            f"missing: {missing}" if missing else "all there",
            "boot Linux 5.15 or newer, or use scripts/devbox",
            needed=True,
        ),
        Finding("small guests", facts["guest"] == "ok", facts["guest"], "see dmesg", needed=True),
        _kernel_mode(facts),
        Finding("vCPUs", True, f"up to {facts['max_vcpus']} in a guest"),
    ]


def _kernel_mode(facts: dict[str, str]) -> Finding:
    speed = float(facts["ns_per_instruction"])
    stumbles = [name for name in ("exchange", "fpu", "breakpoint") if facts.get(name) != "ok"]
    seen = f"{speed:.1f} ns an instruction in kernel mode"
    if stumbles:
        seen += f"; KVM cannot do: {', '.join(stumbles)}"
    remedy = (
        "use scripts/devbox, which is what scripts/run does by itself; it takes a KVM on VT-x or"
        " SVM to run Linux directly"
    )
    good = speed < EMULATED_NS and not stumbles
    return Finding("Linux guests", good, seen, remedy, needed=True)


def _huge_pages() -> Finding:
    try:
        with open(SHMEM_THP) as file:
            text = file.read()
    except OSError:
        return Finding("huge pages", False, "this kernel has none", "guests run, but slower")
    mode = text.partition("[")[2].partition("]")[0]
    good = mode in ("advise", "always", "within_size", "force")
    return Finding(
        "huge pages",
        good,
        f"shared memory: {mode}",
        f"write 'advise' to {SHMEM_THP}: kvmpv doctor --fix does",
        fix=(SHMEM_THP, "advise"),
    )


def _built(what: str, file: str) -> Finding:
    path = f"{defaults.cache()}/current/{file}"
    there = os.path.exists(path)
    return Finding(what, there, path if there else "not built yet", defaults.REMEDY)


def _probe(kvm: int) -> dict[str, str]:
    """Run the probe in a process of its own: a bad KVM shall not take this one with it."""
    reader, writer = os.pipe()
    with os.fdopen(reader) as answers:
        try:
            pid = os.posix_spawn(
                sys.executable,
                [sys.executable, "-I", "-S", PROBE, str(kvm)],
                {},
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, writer, 1),
                    (os.POSIX_SPAWN_DUP2, kvm, kvm),
                ],
            )
        finally:
            os.close(writer)
        facts = dict(line.rstrip("\n").split("=", 1) for line in answers if "=" in line)
    os.waitpid(pid, 0)
    return facts
