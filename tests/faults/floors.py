"""Installs the oldest dependencies that pyproject.toml allows in a new environment, and runs a core of the tests there.

    python tests/faults/floors.py [PYTHON]

With PYTHON, another interpreter, such as python3.13. What is installed is the newest that keeps every floor's number:
the dependencies of flowrl at exactly their floors, those of theirs as pip chooses.
"""

import pathlib
import re
import subprocess
import sys
import tempfile
import tomllib

ROOT = pathlib.Path(__file__).resolve().parents[2]
#: Of the development tools, those that the tests below import.
TOOLS = ("beartype", "hypothesis", "pytest", "pytest-xdist")
TESTS = ("test_budget", "test_transport", "test_svgd", "test_select", "test_bounds", "test_nonfinite", "test_targets")


def floors(requirements: list[str]) -> dict[str, str]:
    """Return name to lowest version of requirements such as "jax>=0.10.2"."""
    found = (re.fullmatch(r"([\w.-]+)(?:\[[\w,]+\])?\s*>=\s*([\w.]+)(?:,<.*)?", text) for text in requirements)
    return {match[1].lower(): match[2] for match in found if match}


def main(python: str) -> None:
    """Install, check and test."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lowest = floors(project["dependencies"])
    assert len(lowest) == len(project["dependencies"]), "a dependency without a floor"
    tools = {
        name: version for name, version in floors(project["optional-dependencies"]["dev"]).items() if name in TOOLS
    }
    assert set(tools) == set(TOOLS), "a tool without a floor"
    with tempfile.TemporaryDirectory() as folder:
        constraints = pathlib.Path(folder) / "floors.txt"
        constraints.write_text("".join(f"{name}=={version}\n" for name, version in (lowest | tools).items()))
        print(constraints.read_text(), end="", flush=True)
        subprocess.run([python, "-m", "venv", f"{folder}/venv"], check=True)
        inside = f"{folder}/venv/bin/python"
        install = [inside, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--constraint"]
        subprocess.run([*install, str(constraints), str(ROOT), *tools], check=True)
        subprocess.run([inside, "-m", "pip", "check", "--disable-pip-version-check"], check=True)
        # The tests import the checkout, of which the installed package is a copy, and the dependencies at their floors.
        run = [inside, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--confcutdir", str(ROOT / "tests")]
        files = [str(ROOT / "tests" / f"{name}.py") for name in TESTS]
        subprocess.run([*run, *files], check=True, cwd=ROOT)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else sys.executable)
