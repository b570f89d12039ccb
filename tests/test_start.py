"""The programs of the first page: copied to an empty folder, run there, and as short as the page says."""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

START = pathlib.Path(__file__).resolve().parents[1] / "docs" / "snippets" / "start"
# What makes them quick: as many rows, updates and episodes as show that they run. Nothing else is changed.
SMALLER = {
    "posterior.py": {},
    "own_environment.py": {"range(50)": "range(5)", "updates=2000": "updates=50", "episodes=10": "episodes=2"},
    "ogbench.py": {"rows=100_000": "rows=1_000", "updates=10_000": "updates=50", "episodes=20": "episodes=1"},
}
SAID = {
    "posterior.py": r"verdict +arrived.*\n\[48\.\d+ +-7\.\d+",
    "own_environment.py": r"behaviour: -\d+ \+- \d+\nbest of 8: -\d+ \+- \d+\nconsensus .*\n\(array\(",
    "ogbench.py": r"best of 8: \d+ %\nconsensus 0\.5 of 32, VGF L=1 of 0\.1: \d+ %",
}


def test_every_program_is_here():
    assert {path.name for path in START.glob("*.py")} == set(SMALLER)


@pytest.mark.parametrize("name", SMALLER)
def test_it_is_short(name):
    lines = [line for line in (START / name).read_text().splitlines() if line.strip()]
    assert len(lines) <= 25


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALLER)
def test_it_runs_from_an_empty_folder(name, tmp_path):
    program = (START / name).read_text()
    for large, less in SMALLER[name].items():
        assert program.count(large) == 1, large
        program = program.replace(large, less)
    (tmp_path / "program.py").write_text(program)
    environment = os.environ | {"JAX_ENABLE_X64": "0", "XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "program.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert re.search(SAID[name], done.stdout), done.stdout
    shutil.rmtree(tmp_path)
