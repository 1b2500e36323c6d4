"""Options that cannot be cost one line, before anything is opened; all forms of an option agree."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from kvmpv.toolstack.options import OPTIONS

KVMPV = str(Path(__file__).parents[3] / "build/bin/kvmpv")
HOST_MIB = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20

# Arguments ({} is the folder with the files below), what is wrong, how to mend it.
CASES = {
    "no-memory": (["-m", "0"], "0 bytes of memory are too few", "give 2M or more"),
    "odd-memory": (["-m", "3145729"], "3145729 bytes of memory are no whole number of MiB",
                   "give 64M, say"),
    "negative-memory": (["--memory", "-5M"], "'-5M' is no size", "write 64M or 2G"),
    "text-memory": (["--memory=much"], "'much' is no size", "write 64M or 2G"),
    "long-memory": (["-m", "9" * 5000], f"'{'9' * 5000}' is no size", "write 64M or 2G"),
    "too-much-memory": (["-m", "100T"], "104857600 MiB of memory are more than this host has",
                        f"it has {HOST_MIB} MiB"),
    "no-vcpus": (["--vcpus", "0"], "0 vCPUs are not possible", "1 to 254 are"),
    "many-vcpus": (["-c", "255"], "255 vCPUs are not possible", "1 to 254 are"),
    "text-vcpus": (["--vcpus", "two"], "vcpus wants a number, not 'two'", "such as 2"),
    "fewer-later": (["--vcpus", "4", "--max-vcpus", "2"], "at most 2 vCPUs are not possible",
                    "4 (as many as at boot) to 254 are"),
    "unknown-option": (["--kernal", "x"], "unknown option '--kernal'", "did you mean --kernel?"),
    "odd-argument": (["vmlinux"], "unknown option 'vmlinux'", "see kvmpv run --help"),
    "no-value": (["--vcpus"], "--vcpus wants a value", "--vcpus N"),
    "value-for-switch": (["--stats=no"], "--stats takes no value", "write --stats alone"),
    "long-cmdline": (["--cmdline", "x" * 2000], "the command line has 2000 bytes",
                     "at most 1983 are possible"),
    "broken-cmdline": (["--cmdline", "a\nb"], "the command line has a line break in it",
                       "take it out"),
    "bad-name": (["--name", "../up"], "'../up' is no name for a domain",
                 "at most 63 letters, digits, '.', '_', '-', no '.' or '-' in front"),
    "long-name": (["--name", "n" * 64], f"'{'n' * 64}' is no name for a domain",
                  "at most 63 letters, digits, '.', '_', '-', no '.' or '-' in front"),
    "missing-config": (["--config", "{}/nowhere"],
                       "cannot read {}/nowhere: No such file or directory",
                       "give the path of a TOML file: --config"),
    "folder-config": (["--config", "{}"], "cannot read {}: Is a directory",
                      "give the path of a TOML file: --config"),
    "no-toml": (["--config", "{}/broken.toml"],
                "{}/broken.toml is no TOML: Invalid value (at line 1, column 10)",
                'lines are like: memory = "64M"'),
    "unknown-key": (["--config", "{}/key.toml"], "unknown option 'memroy'",
                    "did you mean memory?"),
    "wrong-value": (["--config", "{}/value.toml"], "stats wants true or false, not 'yes'",
                    "such as true"),
    "config-in-config": (["--config", "{}/config.toml"],
                         "{}/config.toml names another configuration",
                         "take 'config' out of it"),
}  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("configurations")
    (folder / "broken.toml").write_text("memory = \n")
    (folder / "key.toml").write_text('memroy = "64M"\n')
    (folder / "value.toml").write_text('stats = "yes"\n')
    (folder / "config.toml").write_text('config = "other.toml"\n')
    return folder


def run(
    *arguments: str, domains: Path | None = None, variables: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "KVMPV_RUN_DIR": str(domains), **(variables or {})}
    return subprocess.run(
        [KVMPV, *arguments],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("case", CASES)
def test_option_that_cannot_be_costs_one_line(case: str, files: Path, tmp_path: Path) -> None:
    given, what, remedy = CASES[case]
    arguments = [argument.replace("{}", str(files)) for argument in given]
    done = run("run", *arguments, domains=tmp_path / "run")
    what = what.replace("{}", str(files))
    assert done.stderr == f"kvmpv: {what} ({remedy})\n"
    assert (done.returncode, done.stdout) == (2, "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_lists_every_option(flag: str) -> None:
    done = run("run", flag)
    assert (done.returncode, done.stderr) == (0, "")
    for option in OPTIONS:
        assert option.flag in done.stdout
        assert option.short in done.stdout


def test_unknown_command_is_refused() -> None:
    done = run("rum")
    assert (done.returncode, done.stdout) == (2, "")
    assert "rum" in done.stderr
    assert "Traceback" not in done.stderr


def test_version_is_printed() -> None:
    done = run("--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("kvmpv ")


def test_completion_is_offered() -> None:
    # Without the switch the shell is the one that this runs below, if it runs below any.
    named = {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    done = run("--show-completion", "bash", variables=named)
    assert (done.returncode, done.stderr) == (0, "")
    assert "_KVMPV_COMPLETE=complete_bash" in done.stdout
    words = {"COMP_WORDS": "kvmpv run --ma", "COMP_CWORD": "2"}
    done = run(variables={"_KVMPV_COMPLETE": "complete_bash", **words})
    assert done.stdout.split() == ["--max-vcpus"]
