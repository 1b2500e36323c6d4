"""What ends a domain's process, and what it then says."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from kvmpv.vmm.main import Domain


@pytest.mark.parametrize(("kind", "says"), [("reboot", "killed"), ("poweroff", "poweroff")])
def test_domain_that_is_killed_as_its_guest_reboots_does_not_reboot(
    kind: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = SimpleNamespace(ending=True, ended=-1, kind=kind, message="the guest's own")
    ends: list[str] = []
    domain = Domain.__new__(Domain)
    domain._killed, domain.devices, domain.times = "the owner is gone", None, {}
    monkeypatch.setattr(domain, "boot", lambda: machine)
    monkeypatch.setattr(domain, "unwatch", lambda _: None)
    monkeypatch.setattr(domain, "_write_end", lambda machine: ends.append(machine.kind))
    assert domain.run() == 0
    assert ends == [says]
    assert machine.message == ("the owner is gone" if says == "killed" else "the guest's own")
