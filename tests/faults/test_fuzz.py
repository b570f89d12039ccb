"""The core under calls that nobody would choose, and what such calls have found."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import draw, log_normal

import flowrl
from flowrl import bounds, diagnostics

PROGRAM = Path(__file__).with_name("fuzz.py")


@pytest.mark.slow
def test_ten_thousand_calls_without_a_crash_a_hang_or_an_unasked_nan():
    """In a process of its own: without the type checker of these tests, as a user calls."""
    done = subprocess.run([sys.executable, str(PROGRAM), "10000", "0"], capture_output=True, text=True, check=False)
    found = json.loads(done.stdout.splitlines()[-1])
    print({name: x for name, x in found.items() if name != "wrong"})
    assert found["wrong"] == {}, done.stdout[-3000:]
    assert done.returncode == 0
    assert found["structures"] <= 60
    assert found["valid"] + found["invalid"] == 10_000
    assert found["invalid"] > 2000


@pytest.mark.slow
def test_no_valid_call_of_a_method_ends_in_an_error_that_is_not_documented():
    """FLOWRL_FUZZ_CALLS says how many calls."""
    calls = os.environ.get("FLOWRL_FUZZ_CALLS", "20000")
    program = PROGRAM.with_name("fuzz_methods.py")
    done = subprocess.run([sys.executable, str(program), calls, "0"], capture_output=True, text=True, check=False)
    found = json.loads(done.stdout.splitlines()[-1])
    print({name: x for name, x in found.items() if name != "wrong"})
    assert found["wrong"] == {}, done.stdout[-3000:]
    assert found["valid"] > 0.6 * int(calls)


@pytest.mark.thorough
@pytest.mark.parametrize("flow", [flowrl.Ascent(), flowrl.Blob()], ids=lambda flow: type(flow).__name__)
def test_proximal_steps_in_single_precision_in_a_process_of_doubles(flow):
    start = draw(0, (5, 2), jnp.float32)
    both = [
        flowrl.transport(
            flowrl.Density(log_normal) if flow.traits.entropic else flowrl.Boltzmann(log_normal),
            start.astype(dtype),
            flowrl.Budget(2, 0.3),
            flow=flow,
            solver=flowrl.JKO(),
        ).particles
        for dtype in (jnp.float32, jnp.result_type(float))
    ]
    assert both[0].dtype == jnp.float32
    np.testing.assert_allclose(both[0], both[1], atol=2e-3)


@pytest.mark.parametrize("junk", ["x", b"x", [1, "a"], 1j, object(), len], ids=lambda junk: type(junk).__name__)
@pytest.mark.parametrize("select", [flowrl.best_of_n, flowrl.uniform_select, flowrl.softmax_select])
def test_particles_that_are_no_arrays_are_refused_by_selection(select, junk):
    options = {} if select is flowrl.best_of_n else {"key": jax.random.key(0)}
    options |= {"selection_temperature": 1.0} if select is flowrl.softmax_select else {}
    checked = getattr(select, "__wrapped__", select)  # past the type checker of these tests
    with pytest.raises(TypeError, match=r"particles must be arrays \(n, \.\.\.\)"):
        checked(junk, jnp.ones(4), **options)


@pytest.mark.parametrize("values", [jax.random.key(0), jnp.ones(4, complex)], ids=["key", "complex"])
def test_values_that_are_no_real_numbers_are_refused_by_selection(values):
    with pytest.raises(TypeError, match="values must be real numbers, got dtype"):
        getattr(flowrl.best_of_n, "__wrapped__", flowrl.best_of_n)(jnp.ones((4, 2)), values)


@pytest.mark.parametrize(
    ("function", "arguments", "words"),
    [
        (bounds.displacement, (flowrl.Budget(1), 1.0, 0.0), "sigma must be > 0, got 0.0"),
        (bounds.displacement, (flowrl.Budget(1), -1.0, 1.0), "gradient_bound must be >= 0"),
        (bounds.displacement, (flowrl.Budget(1), np.nan, 1.0), "gradient_bound must be >= 0, got nan"),
        (bounds.mmd_squared, (flowrl.Budget(1), 1.0, -1.0), "sigma must be > 0"),
        (bounds.mmd_squared_from_displacement, (-1.0, 1.0), "max_displacement must be >= 0"),
        (bounds.best_of_n_kl, (0,), "n must be a finite number >= 1, got 0"),
        (bounds.best_of_n_kl, (np.nan,), "n must be a finite number >= 1, got nan"),
    ],
)
def test_bounds_of_numbers_out_of_range_are_refused(function, arguments, words):
    with pytest.raises(ValueError, match=words):
        function(*arguments)


def test_what_is_no_budget_and_no_weights():
    with pytest.raises(TypeError, match="budget must be a flowrl.Budget, got int"):
        getattr(bounds.displacement, "__wrapped__", bounds.displacement)(3, 1.0, 1.0)
    size = getattr(diagnostics.effective_sample_size, "__wrapped__", diagnostics.effective_sample_size)
    with pytest.raises(TypeError, match="log_weights must be an array"):
        size([0.0, 1.0])
