"""Settings that hold for every test: strict promotion, double precision, a key of its own for each test."""

import os
import signal
import subprocess
import sys
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


# Nearly all the time of the quick tests is compilation, and these make it four times as fast; what they compile runs
# slower, so the slow tests go without. Results differ by rounding at most.
QUICK_TO_COMPILE = (
    "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
)


def pytest_configure(config):
    if (
        config.getoption("markexpr").strip() in ("not slow and not thorough", "thorough")
        and "XLA_FLAGS" not in os.environ
    ):
        # A flag that a release of XLA does not know ends the process, so another one tries them; workers inherit them.
        flags = {"XLA_FLAGS": QUICK_TO_COMPILE}
        probe = [sys.executable, "-c", "import jax; jax.devices()"]
        known = subprocess.run(probe, env=os.environ | flags, capture_output=True, check=False).returncode == 0
        os.environ["XLA_FLAGS"] = flags["XLA_FLAGS"] if known else ""  # JAX reads it when the first array is made


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
def ctrl_c():
    """What Ctrl-C does in a program at a terminal: one in the background may ignore it, with its children."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def key(request):
    """A key made from the test's own name: the same in every run and in any order, another for every test."""
    name = request.node.nodeid.split("@")[0]  # pytest-xdist appends "@group"
    return jr.key(zlib.crc32(name.encode()))


@pytest.fixture
def at_most_entries(monkeypatch):
    """Set how many entries of a kernel matrix are held at a time."""
    return lambda number: monkeypatch.setattr("flowrl._kernel._blocks.ENTRIES", number)


@pytest.fixture
def free_memory(monkeypatch):
    """Set how many bytes of memory the machine seems to have free."""
    return lambda number: monkeypatch.setattr("flowrl._io._memory.available_memory", lambda: number)
