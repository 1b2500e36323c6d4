"""When a block queue lets requests gather: where that was better as measured, and nowhere else."""

from __future__ import annotations

import itertools
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
HEADERS = HERE.parents[2] / "kvmpv/dataplane"
STAY, REST = 32, 16  # periods, LINGER_STAY and LINGER_REST
MS = 1_000_000


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    built = tmp_path_factory.mktemp("linger") / "linger"
    flags = ["-O1", "-std=gnu11", "-Wall", "-Werror", "-fsanitize=undefined", f"-I{HEADERS}"]
    subprocess.run(["gcc", *flags, str(HERE / "linger.c"), "-o", str(built)], check=True)
    return built


def ways(program: Path, periods: int, *load: int, together: int = 1) -> list[tuple[str, int]]:
    """Return the way each period went, with the step in ns that followed."""
    argv = [str(program), str(periods), *map(str, load), str(together)]
    said = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    return [(way, int(step)) for way, step in (line.split() for line in said.splitlines())]


def runs(went: list[tuple[str, int]]) -> list[tuple[str, int]]:
    """Return how many periods in a row went each way."""
    return [(way, len(list(same))) for way, same in itertools.groupby(went, lambda one: one[0])]


def test_it_lingers_while_that_is_better_and_looks_again_now_and_then(program: Path) -> None:
    went = ways(program, 2 * STAY + 4, 20_000, 10_000, 60, 3)
    assert runs(went) == [("prompt", 1), ("linger", STAY), ("prompt", 1), ("linger", STAY),
                          ("prompt", 1), ("linger", 1)]  # fmt: skip
    assert {step for _, step in went} == {0, 80_000}  # four requests of the prompt way


def test_it_is_given_up_where_it_is_not_much_better(program: Path) -> None:
    went = ways(program, REST + 4, 20_000, 17_000, 60, 3)
    assert runs(went) == [("prompt", 1), ("linger", 1), ("prompt", REST + 1), ("linger", 1)]


def test_answers_that_come_together_all_count(program: Path) -> None:
    """A period ends with a step: more requests are answered in it than it takes."""
    went = ways(program, STAY + 1, 20_000, 15_000, 60, 3, together=96)
    assert runs(went) == [("prompt", 1), ("linger", STAY)]


@pytest.mark.parametrize(
    ("idle", "busy"),
    [pytest.param(40, 3, id="a busy disk"), pytest.param(90, 0, id="one request at a time")],
)
def test_it_is_not_even_tried(program: Path, idle: int, busy: int) -> None:
    assert runs(ways(program, 100, 20_000, 10_000, idle, busy)) == [("prompt", 100)]


def test_a_pause_is_not_held_against_the_prompt_way(program: Path) -> None:
    """With 20 ms for each request there is no load, and nothing to compare."""
    assert runs(ways(program, 10, 20 * MS, 1_000, 90, 3)) == [("prompt", 10)]


def test_it_ends_with_a_pause(program: Path) -> None:
    """Else it went on for ever with a driver of whose requests no period is ever whole."""
    argv = [str(program), "wait", str(MS), str(20 * MS), str(MS)]
    said = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    assert said.split() == ["linger", "prompt", "prompt"]


def test_disk_that_does_nothing_is_waited_for(program: Path) -> None:
    """By the clock, that would take a processor for as long as it hangs."""
    said = subprocess.run([program, "stuck", "1000"], capture_output=True, check=True).stdout
    assert int(said) < 10


def test_step_has_an_end(program: Path) -> None:
    went = ways(program, 2, MS, MS // 2, 90, 3)
    assert went == [("prompt", MS), ("linger", MS)]


@pytest.mark.parametrize(
    ("taken", "said"),
    [
        pytest.param("0", "signal", id="a driver that waits"),
        pytest.param("5 0", "hold signal", id="one that has come to wait"),
        pytest.param("5 5 5 5 5", "hold hold hold signal hold", id="one that goes on to offer"),
    ],
)
def test_answers_are_held_back_while_the_driver_offers(
    program: Path, taken: str, said: str
) -> None:
    done = subprocess.run([program, "signal", *taken.split()], capture_output=True, check=True)
    assert done.stdout.decode().split() == said.split()
