"""``kvmpv run``: one domain in the foreground, with its console or one command's output."""

from __future__ import annotations

import os
import sys

from kvmpv.cli.terminal import Terminal
from kvmpv.errors import AgentError, BadInput, KvmpvError
from kvmpv.toolstack.config import parse_arguments
from kvmpv.toolstack.domain import KILLED, Domain, End

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from types import FrameType
else:
    import _signal as signal  # signal itself imports enum, which takes a third of our start

OWN_INIT_STOPS = 120.0  # seconds that a guest may take to power off after --exec's command
AGENT_STOPS = 5.0


class Signals:
    """What signals came: ``wake`` becomes readable at each, ``asked`` says that one was Ctrl-C.

    Without that descriptor one that comes just before a wait would not end it.
    """

    __slots__ = ("asked", "wake")

    def __init__(self, wake: int) -> None:
        self.wake = wake
        self.asked = False


def run(arguments: list[str]) -> int:
    """Run a domain from ``kvmpv run``'s arguments to its end; return the exit status."""
    domain = Domain(**parse_arguments(arguments))
    output = _console(domain)
    signals = _follow_signals(domain)
    with domain:
        if domain.config.exec:
            status, end = _run_command(domain, output, signals)
        else:
            end = Terminal(domain, output, signals.wake).relay()
            status = end.status
        if domain.config.stats or domain.config.json:
            _print_cost(end, domain.config.json)
    end.check()
    return status


def _console(domain: Domain) -> int | None:
    """Return the descriptor that the guest's console goes to."""
    where = domain.config.console or ("none" if domain.config.exec else "terminal")
    if where == "none":
        return None
    if where == "terminal":
        return 2 if domain.config.exec else 1
    try:
        return os.open(where, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise BadInput(
            f"cannot write the console to {where}: {error.strerror}",
            hint="give 'terminal', 'none' or a file: --console",
        ) from None


def _follow_signals(domain: Domain) -> Signals:
    """Ask the guest to power off at the first Ctrl-C; end it at the second, or at SIGTERM."""
    wake, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signals = Signals(wake)

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        if not domain.started:
            raise KeyboardInterrupt
        if signals.asked:
            domain.terminate()
            return
        signals.asked = True
        print("kvmpv: asked the guest to power off; Ctrl-C again ends it", file=sys.stderr)
        try:
            if domain.control("poweroff").get("heard") == "no":
                print("kvmpv: the guest does not listen to requests (yet)", file=sys.stderr)
        except KvmpvError:
            pass  # it is ending already

    signal.signal(signal.SIGINT, interrupt)

    def terminate(_signal: int, _frame: FrameType | None) -> None:
        if not domain.started:
            raise KeyboardInterrupt
        domain.terminate()

    signal.signal(signal.SIGTERM, terminate)
    signal.signal(signal.SIGHUP, terminate)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    return signals


def _run_command(domain: Domain, output: int | None, signals: Signals) -> tuple[int, End]:
    drain = Terminal(domain, output).drain_in_background() if output is not None else None
    try:
        status = domain.agent.run(
            domain.config.exec, stdin=0, stdout=1, stderr=2, poweroff=True, signals=signals.wake
        )
    except AgentError as error:
        end = _cut_off(domain, error)
        return KILLED if signals.asked else end.status, end
    # A system with an init of its own stops its services and unmounts its disks first.
    patience = OWN_INIT_STOPS if domain.config.boots_itself else AGENT_STOPS
    end = domain.wait(timeout=patience) or domain.kill()
    if drain is not None:
        drain.acquire()
    return status, end


def _cut_off(domain: Domain, error: AgentError) -> End:
    """Return the end of a guest whose agent went away before the command had ended."""
    try:
        rebooted = domain.status()["boots"] != "1"  # answered once it boots again
    except KvmpvError:
        rebooted = False  # it is ending
    if rebooted:
        domain.kill()
        raise AgentError("the guest rebooted before the command ended")
    end = domain.wait(timeout=2.0) or domain.kill()
    end.check()
    if end.status == KILLED or end.kind == "poweroff":  # which the command may have asked for
        return end
    raise AgentError(f"the guest ended before the command did: {error.message}") from None


def _print_cost(end: End, as_json: bool) -> None:
    if as_json:
        import json

        facts = {"kind": end.kind, "message": end.message, "report": end.report, "stats": end.stats}
        print(json.dumps(facts), file=sys.stderr)
        return
    times = {key: value for key, value in end.stats.items() if key.startswith("ns_to_")}
    for key, value in end.stats.items():
        if key not in times and value:
            print(f"{key:32} {value:>14}", file=sys.stderr)
    before = 0
    for key, value in times.items():
        print(
            f"{'ms_to_' + key[6:]:32} {value / 1e6:>14.2f}  (+{(value - before) / 1e6:.2f})",
            file=sys.stderr,
        )
        before = value
