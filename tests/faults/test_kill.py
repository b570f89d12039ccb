"""Real programs are killed at random moments and go on; in the end nothing is lost, doubled or changed.

    pytest -m slow tests/faults/test_kill.py -s

Half of the kills come from outside, at a random time after the run has begun; the other half are at a random change of
the file system (before or after a file is synced, renamed, linked or removed), which is where writing can go wrong.
FLOWRL_FAULT_SEED chooses other moments, FLOWRL_FAULT_KILLS more of them.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from faults.programs import HERE, PROGRAMS, content, differences, environment, finish, flat

pytestmark = pytest.mark.usefixtures("ctrl_c")  # what the programs that are started here would inherit

#: Kills of each program; with those of single cells of a matrix together more than 40.
KILLS = {"offline": 10, "online": 10, "rlhf": 4, "generate": 6, "experiments": 4, "posterior": 4}
CELL_KILLS = 6
SEED = int(os.environ.get("FLOWRL_FAULT_SEED", "0"))
FACTOR = int(os.environ.get("FLOWRL_FAULT_KILLS", "1"))


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A directory with the data and the offline run that the programs start from, and the programs they compile."""
    folder = tmp_path_factory.mktemp("faults")
    offline = PROGRAMS["offline"].words(folder / "data" / "offline", folder / "data")
    finish([*PROGRAMS["offline"].start, *offline], folder / "cache")
    return folder


class Victim:
    """A program with a run that nothing disturbed, and what that run says of the moments at which one can die."""

    def __init__(self, name: str, base: Path):
        self.name, self.base, self.program = name, base, PROGRAMS[name]
        self.whole, self.cut = base / f"{name}-whole", base / f"{name}-cut"
        count, begun = base / f"{name}-changes", time.monotonic()
        # Twice: the first one compiles.
        for _ in range(2):
            shutil.rmtree(self.whole, ignore_errors=True)
            begun = time.monotonic()
            command = [str(HERE / "killed_at.py"), str(count), "0", *self.program.command(self.whole, self._data)]
            finish(command, base / "cache")
        self.seconds, self.changes = time.monotonic() - begun, int(count.read_text())

    @property
    def _data(self) -> Path:
        return self.base / "data"

    def run_until(self, seconds: float | None, change: int) -> int:
        """Start or go on, and die: some seconds after the run's directory is there, or at a change. Give the status."""
        command = self.program.command(self.cut, self._data)
        if change:
            command = [str(HERE / "killed_at.py"), str(self.base / "unused"), str(change), *command]
        with open(self.base / f"{self.name}.log", "wb") as log:
            process = subprocess.Popen(
                [sys.executable, *command], env=environment(self.base / "cache"), stdout=log, stderr=log
            )
        if seconds is not None:
            while not self.cut.exists() and process.poll() is None:
                time.sleep(0.01)
            try:
                process.wait(seconds)
            except subprocess.TimeoutExpired:
                process.kill()
        return process.wait(600)

    def ended_well(self) -> None:
        """Hold the run against the one that nothing disturbed."""
        assert differences(self.program, self.whole, self.cut) == []
        halves = [path for path in self.cut.rglob(".*.tmp") if self.name != "experiments"]
        assert halves == [], "what a killed writer had left was not removed"
        shutil.rmtree(self.cut)


@pytest.mark.slow
@pytest.mark.parametrize("name", KILLS)
def test_runs_that_are_killed_and_go_on_end_as_one_that_was_not(base, name):
    victim = Victim(name, base)
    rng = np.random.default_rng([SEED, *name.encode()])
    wanted, killed, ended = KILLS[name] * FACTOR, 0, 0
    while killed < wanted:
        outside = rng.random() < 0.5
        seconds, change = (rng.uniform(0, 0.8 * victim.seconds), 0) if outside else (None, 0)
        if not outside:
            change = int(rng.integers(1, victim.changes + 1))
        status = victim.run_until(seconds, change)
        where = f"after {seconds:.1f} s" if outside else f"at change {change} of {victim.changes}"
        if status == 0:  # it was done before its moment came
            ended += 1
            victim.ended_well()
            print(f"{name}: ended, before it was to be killed {where}")
            continue
        assert status == -signal.SIGKILL, (base / f"{name}.log").read_text()[-3000:]
        killed += 1
        print(f"{name}: killed {where}; there are {_state(victim.cut)}")
    finish(victim.program.command(victim.cut, victim._data), base / "cache")
    victim.ended_well()
    print(f"{name}: {killed} kills, {ended + 1} ends, each equal to the run that was not killed")


@pytest.mark.slow
def test_a_matrix_whose_cells_are_killed_says_so_and_ends_as_one_in_which_none_was(base):
    """The process of a cell is killed, as by a machine that has run out of memory; its runner lives on."""
    victim = Victim("experiments", base)
    rng = np.random.default_rng([SEED, *b"cells"])
    killed, ended = 0, 0
    while killed < CELL_KILLS * FACTOR:
        log = base / "cells.log"
        with open(log, "wb") as file:
            runner = subprocess.Popen(
                [sys.executable, *victim.program.command(victim.cut, victim._data)],
                env=environment(base / "cache"),
                stdout=file,
                stderr=file,
            )
            after, child = rng.uniform(0, 0.5 * victim.seconds), None
            while child is None and runner.poll() is None:
                child = _child(runner.pid)
                time.sleep(0.01)
            time.sleep(after)
            here = _child(runner.pid)
            if here is not None:
                os.kill(here, signal.SIGKILL)
            status = runner.wait(600)
        if here is None or status == 0:  # between two cells, or after the last change of one
            ended += 1
            shutil.rmtree(victim.cut)
            continue
        assert status == 1, log.read_text()[-3000:]
        assert "1 of 2 cells are done" in log.read_text()
        killed += 1
        print(f"a cell killed after {after:.1f} s; there are {_state(victim.cut)}")
        if rng.random() < 0.5:
            finish(victim.program.command(victim.cut, victim._data), base / "cache")
            victim.ended_well()
    if victim.cut.exists():
        finish(victim.program.command(victim.cut, victim._data), base / "cache")
        victim.ended_well()
    print(f"cells: {killed} kills, {ended} runs that were done before")


def _child(pid: int) -> int | None:
    """The first child of a process, as Linux lists them."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return None
    return int(children[0]) if children else None


def _state(out: Path) -> str:
    """Say how far a run was when it died."""
    names = [path.name for path in out.rglob("*") if path.is_file() and "cache" not in path.parts]
    metrics = out / "metrics.csv"
    rows = f", {len(metrics.read_text().splitlines()) - 1} rows of metrics" if metrics.exists() else ""
    halves = sum(name.endswith(".tmp") for name in names)
    return f"{len(names)} files, {halves} of them half written{rows}"


STOPPED = {"offline": 143, "online": 130, "rlhf": 143, "experiments": 143}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "status"), STOPPED.items())
def test_a_run_that_is_told_to_stop_says_how_to_go_on_and_does(base, name, status):
    victim = Victim(name, base)
    process = subprocess.Popen(
        [sys.executable, *victim.program.command(victim.cut, victim._data)],
        env=environment(base / "cache"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    there = victim.cut / ("cells" if name == "experiments" else "checkpoint.npz")
    deadline = time.monotonic() + 120
    while not there.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM if status == 143 else signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == status, said
    assert "Traceback" not in said
    line = said.strip().splitlines()[-1]
    assert line.startswith("stopped; to go on: python ")
    finish(line.split()[5:], base / "cache")
    victim.ended_well()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["offline", "online"])
def test_a_finished_run_that_is_extended_ends_as_one_of_that_length(base, name):
    program, shorter = PROGRAMS[name], {"offline": "40", "online": "80"}[name]
    alone, grown = base / f"{name}-alone", base / f"{name}-grown"
    words = program.command(grown, base / "data")
    at = words.index("--steps") + 1
    finish([*words[:at], shorter, *words[at + 1 :], *_FLAT[name]], base / "cache")
    assert (grown / "results.csv").exists()
    finish([*words, *_FLAT[name], "--resume"], base / "cache")
    finish([*program.command(alone, base / "data"), *_FLAT[name]], base / "cache")
    assert content(grown / "results.csv") == content(alone / "results.csv")
    arrays = [content(path / "checkpoint.npz")[0] for path in (grown, alone)]
    assert arrays[0] == arrays[1]


#: An online run whose plan follows its length cannot be that of a longer one.
_FLAT = {"offline": [], "online": ["--collect-steps", "1"]}


@pytest.mark.slow
def test_two_processes_that_make_the_same_data_leave_one_whole(base):
    program, folder = PROGRAMS["generate"], base / "together"
    command = [sys.executable, *program.command(folder, base / "data")]
    both = [subprocess.Popen(command, env=environment(base / "cache"), stdout=subprocess.PIPE) for _ in range(2)]
    said = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert said[0] == said[1]
    finish(program.command(base / "alone", base / "data"), base / "cache")
    assert differences(program, base / "alone", folder) == []


@pytest.mark.slow
def test_two_runs_do_not_share_a_directory(base):
    program, out = PROGRAMS["offline"], base / "shared"
    command = [sys.executable, *program.command(out, base / "data")]
    options = {"env": environment(base / "cache"), "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    both = [subprocess.Popen(command, **options) for _ in range(2)]
    said = [process.communicate(timeout=300)[0] for process in both]
    statuses = [process.returncode for process in both]
    assert sorted(statuses) == [0, 1], said
    assert "another process is writing to" in said[statuses.index(1)]
    assert differences(program, base / "data" / "offline", out) == []


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bits_in_another_process_and_without_cached_programs(base, tmp_path):
    program = PROGRAMS["offline"]
    finish(program.command(base / "again", base / "data"), tmp_path / "other-cache")
    assert differences(program, base / "data" / "offline", base / "again") == []
    first, second = (path / "checkpoint.npz" for path in (base / "data" / "offline", base / "again"))
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.slow
def test_training_a_behaviour_policy_says_that_it_starts_again(base, tmp_path):
    options = flat({"--env": "HalfCheetah-v5", "--steps": "45000", "--out": str(tmp_path)})
    process = subprocess.Popen(
        [sys.executable, "-m", "flowrl.scripts", "behaviour", *options],
        env=environment(base / "cache"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not list(tmp_path.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.terminate()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 143
    assert said.strip().splitlines()[-1].startswith("stopped; to start again: python ")
