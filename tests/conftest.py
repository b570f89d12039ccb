"""Settings that hold for every test: strict promotion, double precision, a key of its own for each test."""

import os
import zlib

os.environ.setdefault("MUJOCO_GL", "disabled")  # the simulators are stepped, never drawn

import hypothesis
import jax
import jax.random as jr
import pytest

# Double precision unless FLOWRL_TEST_X64=0. It must be set before the first array is made, so it is not a fixture.
X64 = os.environ.get("FLOWRL_TEST_X64", "1") != "0"
jax.config.update("jax_enable_x64", X64)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# No persistent compilation cache: without a size limit JAX writes its entries in place, and a second pytest worker can
# read one that is half written.

# Each new shape is a compilation, so few examples; derandomised, so that a failure today is a failure tomorrow.
hypothesis.settings.register_profile("flowrl", max_examples=20, deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("flowrl")


def pytest_configure(config):
    # Nearly all the time of the quick tests is compilation, and this saves a quarter of it; the slow ones would run
    # slower. Results differ by rounding at most. JAX reads it when the first array is made.
    if config.getoption("markexpr") == "not slow":
        os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")


def pytest_addoption(parser):
    parser.addoption(
        "--full-product", action="store_true", help="test_contract.py: every combination of parts, not only every pair"
    )


@pytest.fixture(autouse=True, scope="module")
def _forget_programs():
    """Compiled programs are kept for ever otherwise: gigabytes by the end of the run."""
    yield
    jax.clear_caches()


@pytest.fixture
def key(request):
    """A key made from the test's own name: the same in every run and in any order, another for every test."""
    name = request.node.nodeid.split("@")[0]  # pytest-xdist appends "@group"
    return jr.key(zlib.crc32(name.encode()))
