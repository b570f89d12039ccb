"""Every Python block of README, docs and docstrings runs as it stands; the tutorials' own parts do what is said."""

import ast
import collections
import os
import pathlib
import re
import runpy
import subprocess
import sys
import textwrap
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import X64

import flowrl

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
MODULES = sorted((ROOT / "flowrl").rglob("*.py"))
FENCE = re.compile(r"^( *)```python\n(.*?)^\1```", re.MULTILINE | re.DOTALL)


def _blocks():
    for path in PAGES:
        yield path, path.read_text()
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
                yield path, ast.get_docstring(node)


CASES = [
    pytest.param(textwrap.dedent(code), id=f"{path.relative_to(ROOT)}-{i}")
    for path, text in _blocks()
    for i, (_, code) in enumerate(FENCE.findall(text))
    if "--8<--" not in code  # pulled from a script that has its own test
]


@pytest.mark.parametrize("code", CASES)
def test_block_runs(code, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # what a block writes
    exec(compile(code, "block", "exec"), {"__name__": "block"})
    capsys.readouterr()


def test_every_fence_is_found():
    """A fence that the pattern misses, or a docstring that is not read, would be code that is not run."""
    found = collections.Counter()
    for path, text in _blocks():
        found[path] += len(FENCE.findall(text))
    for path in (*PAGES, *MODULES):
        fences = len(re.findall(r"^ *(?:`{3,}|~{3,}) *(?:python|py\b)", path.read_text(), re.MULTILINE))
        assert found[path] == fences, f"{path.relative_to(ROOT)}: {fences} fences, of which {found[path]} are run"


@pytest.mark.thorough
def test_the_home_page_shows_what_its_program_prints():
    """In single precision, as a reader runs it; digits may differ a little from machine to machine."""
    page = (ROOT / "docs" / "index.md").read_text()
    code = FENCE.search(page).group(2)
    printed = re.search(r"<!-- printed: quick start -->\n\n```text\n(.*?)```", page, re.DOTALL).group(1)
    left, right = map(int, re.search(r"Of the 100 particles (\d+) end in the left Gaussian and (\d+)", page).groups())
    program = code + "\nprint(int((solution.particles[:, 0] < 0).sum()))"
    environment = os.environ | {"JAX_ENABLE_X64": "0"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    *lines, count = done.stdout.splitlines()
    number = re.compile(r"-?\d+(?:\.\d+)?(?:e-?\d+)?")
    got, shown = "\n".join(lines), printed.strip()
    assert number.sub("#", got) == number.sub("#", shown), f"docs/index.md should show\n{got}"
    assert list(map(float, number.findall(got))) == pytest.approx(list(map(float, number.findall(shown))), rel=0.02)
    assert abs(int(count) - left) <= 2
    assert left + right == 100


class _Ends(flowrl.AbstractStepSolver):
    """Stays where it is, and ends with the result it is given."""

    result: Any
    needs = flowrl.Needs()

    def step(self, _, ensemble):
        return ensemble.replace(result=self.result)


_TARGET = flowrl.Density(lambda x: -jnp.sum(x**2))


def _raised(member):
    try:
        flowrl.transport(_TARGET, jnp.zeros((1, 1)), flowrl.Budget(1), solver=_Ends(member))
    except RuntimeError:
        return True
    return False


def test_every_result_is_in_the_table_and_those_that_are_raised_are_said_to_be():
    rows = re.findall(r"^\| (`.*?) \| (yes|no) \|", (ROOT / "docs" / "api" / "solution.md").read_text(), re.MULTILINE)
    told = {name: raised == "yes" for names, raised in rows for name in re.findall(r"`(\w+)`", names)}
    members = flowrl.RESULTS._name_to_item
    assert told == {name: _raised(member) for name, member in members.items()}


# The tutorials on writing parts


def _extension(name):
    return runpy.run_path(str(ROOT / "docs" / "snippets" / "extend" / name))


@pytest.mark.thorough
def test_a_value_without_a_gradient_is_climbed():
    program = _extension("smoothed.py")
    goal, blind, solution = np.asarray(program["goal"]), program["blind"], program["solution"]
    np.testing.assert_array_equal(blind.particles, program["start"])
    assert np.abs(np.asarray(solution.particles) - goal).max() < 0.01
    arguments = program["target"], program["start"], program["budget"]
    with pytest.raises(ValueError, match="Ascent toward Smoothed is stochastic"):
        flowrl.transport(*arguments, flow=flowrl.Ascent())
    # The distribution of the robust mean: the outlier at 9 hardly moves it.
    assert abs(float(program["robust"].particles[:, 0].mean()) - 0.3) < 0.1
    np.testing.assert_array_equal(program["as_a_class"].particles, program["robust"].particles)
    np.testing.assert_array_equal(program["as_a_class"].values, program["robust"].values)


@pytest.mark.thorough
def test_a_flow_a_solver_and_a_domain_of_ones_own():
    program = _extension("repulsion.py")

    def width(name):
        return float(program[name].particles.std(axis=0).mean())

    assert width("alone") < 1e-6
    assert width("apart") == pytest.approx(0.60, abs=0.01)
    assert width("proximal") == pytest.approx(width("apart"), abs=0.01)
    assert width("second_order") == pytest.approx(width("apart"), abs=0.01)
    assert flowrl.supports(program["both"], flowrl.JKO(), flowrl.Unbounded())
    assert np.abs(program["boxed"].particles).max() <= np.asarray(0.3, program["start"].dtype)
    error = program["slope_error"](program["flow"], program["target"], program["start"], 4.0)
    assert float(error) < (1e-14 if X64 else 1e-5)

    # A start that is not finite, which the door cannot see, freezes itself alone.
    @jax.jit
    def hidden(start):
        budget = flowrl.Budget(5, 0.1, 4.0)
        return flowrl.transport(program["target"], start, budget, flow=program["flow"], throw=False)

    assert int(hidden(program["start"].at[3, 0].set(np.nan)).stats["nonfinite"]) == 1
    above = program["above"].particles
    assert float(above.min()) > 1
    assert float(above.mean()) == pytest.approx(4, abs=0.02)
    assert float(above.var()) == pytest.approx(2.95, abs=0.06)


@pytest.mark.thorough
def test_four_methods_are_written_by_public_names():
    program = _extension("solvers.py")
    source = (ROOT / "docs" / "snippets" / "extend" / "solvers.py").read_text()
    for part in ("mala", "kinetic", "tempered", "eks"):
        block = source.split(f"[start:{part}]")[1].split(f"# --8<-- [end:{part}]")[0]
        lines = [line for line in block.splitlines()[1:] if line.strip() and not line.strip().startswith(('"""', "#"))]
        method = lines if part != "eks" else lines[: next(i for i, x in enumerate(lines) if "class Observed" in x)]
        assert len(method) <= 30, part
    exact, near = np.asarray(program["exact"].particles), program["near"]
    assert exact.mean() == pytest.approx(3, abs=0.25)
    assert exact.var() == pytest.approx(3, abs=0.5)
    assert float(near.stats["displacement_max"]) <= 1
    kinetic = np.asarray(program["kinetic"].particles)
    assert np.abs(kinetic.mean(axis=0)).max() < 0.15
    np.testing.assert_allclose(kinetic.var(axis=0), 1, atol=0.2)
    assert float(program["tempered"].extras["log_evidence"]) == pytest.approx(-np.log(5) - 0.8, abs=0.15)
    np.testing.assert_allclose(program["tempered"].particles.mean(axis=0), 0.8, atol=0.1)
    # The posterior of a linear map: precision AᵀA/0.25 + 1/4 = 8.25 in both directions, mean AᵀA x* / ...
    kalman = np.asarray(program["kalman"].particles)
    np.testing.assert_allclose(kalman.mean(axis=0), np.array([2.0, 1.0]) * 8 / 8.25, atol=0.06)
    np.testing.assert_allclose(kalman.var(axis=0), 1 / 8.25, rtol=0.3)


@pytest.mark.thorough
def test_filters_inside_a_scan_are_better_than_what_is_observed():
    program = runpy.run_path(str(ROOT / "docs" / "snippets" / "filters" / "lorenz63.py"))
    errors = {
        name: np.asarray(program["error"](analysis, jax.random.key(1), cycles=12, burn_in=4))[None]
        for name, analysis in program["FILTERS"].items()
    }
    assert list(errors) == ["bootstrap particle filter", "EnKF, stochastic", "EKI", "KFRFlow"]
    for name, error in errors.items():
        assert 0.3 < error[0] < program["OBSERVATION_NOISE"], name
    rows = program["rows"]({name: np.append(error, 2 * error) for name, error in errors.items()})
    written = (ROOT / "docs" / "results" / "lorenz63.csv").read_text().splitlines()
    assert list(rows[0]) == written[0].split(",")
    assert len(rows) + 1 == len(written)


@pytest.mark.slow
def test_the_picture_of_the_home_page_is_drawn_and_its_caps_hold(tmp_path):
    script = runpy.run_path(str(ROOT / "docs" / "snippets" / "figures" / "budget.py"))
    solutions = script["main"](tmp_path / "budget.gif", particles=10, frames=3)
    assert (tmp_path / "budget.gif").stat().st_size > 10_000
    moved = {name: float(solution.stats["displacement_max"]) for name, solution in solutions.items()}
    assert moved["cap 1"] <= 1
    assert moved["cap 1"] < moved["cap 2"] <= 2 < moved["no cap"]
