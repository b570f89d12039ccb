"""Imports flow one way through the rooms, and the package costs its user no optional dependency."""

import ast
import functools
import json
import pathlib
import re
import subprocess
import sys
import tomllib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "flowrl"

# A module may import from its own room and from those above it in this list. A new room gets its line here.
ROOMS = (
    "_distribution",
    "_renamed",
    "_io",
    "_custom_types",
    "_misc",
    "_solution",
    "_budget",
    "_ramp",
    "_domain",
    "_target",
    "_kernel",
    "_sinkhorn",
    "_flow",
    "_solver",
    "_supports",
    "_select",
    "_validation",
    "_transport",
    "_numpyro",
    "_sample",
    "_stepper",
    "diagnostics",
    "bounds",
    "plot",
    "sharding",
    "flowrl",  # the door: flowrl/__init__.py
    "runs",
    "nn",
    "rl.networks",
    "rl.envs",
    "rl.data.schema",
    "rl.data.replay",
    "rl.data.files",
    "rl.data.generators",
    "rl.data.sources",
    "rl.data",
    "rl.learning",
    "rl.acting",
    "rl",
    "rlhf.data",
    "rlhf.models",
    "rlhf.spaces",
    "rlhf.alignment",
    "rlhf.learning",
    "rlhf.evaluation",
    "rlhf.generation",
    "rlhf",
    "scripts",
)
CORE = ROOMS[: ROOMS.index("runs")]
# Rooms that do not know of each other, whatever their order in the list.
STRANGERS = {("rl", "rlhf"), ("rlhf", "rl")}  # with all rooms inside them
STRANGERS |= {(f"rl.data.{room}", "rl.data.replay") for room in ("files", "generators", "sources")}
# A module imports modules of ours at its top. Only where the programs begin may it do so later: `--help`, and a word on
# a missing package, must not wait for the program that is meant.
BEGINNINGS = ("__init__.py", "_cli.py")
# Programs may import what their extra brings; only their `__init__.py`, which names the extra, may not.
# The optional packages the core may ask for, and where; inside functions, as everywhere.
CORE_OPTIONAL = {"plot": {"matplotlib"}, "_numpyro": {"numpyro"}}

# Import names that a distribution brings and that do not follow from its own name.
BRINGS = {
    "minari": {"minari", "h5py"},  # minari[hdf5]
    "ogbench": {"ogbench", "mujoco", "dm_control"},
    "gymnasium": {"gymnasium", "mujoco"},  # gymnasium[mujoco]
    "matplotlib": {"matplotlib", "PIL"},
    "scikit-learn": {"sklearn"},
    "vadersentiment": {"vaderSentiment"},
}


def _import_names(requirements):
    names = set()
    for requirement in requirements:
        distribution = re.match(r"[A-Za-z0-9._-]+", requirement).group().lower()
        names |= BRINGS.get(distribution, {distribution.replace("-", "_")})
    return names


@functools.cache
def _declared():
    """Import names of the runtime dependencies, and those of the extras that the package itself may use."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    optional = _import_names(extras["rl"] + extras["rlhf"] + extras["plot"] + extras["examples"] + extras["bayes"])
    return _import_names(project["dependencies"]), optional


def _is_type_checking(test):
    return (isinstance(test, ast.Name) and test.id == "TYPE_CHECKING") or (
        isinstance(test, ast.Attribute) and test.attr == "TYPE_CHECKING"
    )


def _import_statements(tree):
    """Every import statement with whether it runs when the module is imported.

    An import under `if TYPE_CHECKING` never runs, but it couples rooms all the same, so it is reported as not run.
    """

    def visit(node, runs):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import | ast.ImportFrom):
                yield child, runs
            elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                yield from visit(child, False)
            elif isinstance(child, ast.If) and _is_type_checking(child.test):
                for part in child.body:
                    yield from visit(ast.Module([part], []), False)
                for part in child.orelse:
                    yield from visit(ast.Module([part], []), runs)
            else:
                yield from visit(child, runs)

    return visit(tree, True)


def _imported_modules(statement, importer, is_package):
    """The absolute dotted names that an import statement of the module `importer` asks for."""
    if isinstance(statement, ast.Import):
        return [alias.name for alias in statement.names]
    base = statement.module or ""
    if statement.level:
        parts = importer.split(".")
        parts = parts[: len(parts) - statement.level + (1 if is_package else 0)]
        base = ".".join([*parts, base] if base else parts)
    # `from flowrl import bounds` asks for a submodule, `from flowrl import SVGD` for the door.
    return [f"{base}.{alias.name}" if base == "flowrl" else base for alias in statement.names]


def _room(module, package=PACKAGE):
    """The room a dotted name inside flowrl belongs to."""
    parts = module.split(".")
    if len(parts) == 1:
        return "flowrl"
    for length in (3, 2):
        if ".".join(parts[1 : 1 + length]) in ROOMS:
            return ".".join(parts[1 : 1 + length])
    first = parts[1]
    is_module = (package / first).is_dir() or (package / f"{first}.py").is_file()
    return first if is_module or first in ROOMS else "flowrl"


def _modules(package=PACKAGE):
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        yield path, ".".join(parts[:-1] if is_package else parts), is_package


def _violations(package, runtime, optional):
    """What is wrong with the imports of a package laid out like flowrl, one sentence each."""
    found = []
    for path, module, is_package in _modules(package):
        room = _room(module, package)
        where = path.relative_to(package.parent)
        if room not in ROOMS:
            found.append(f"{where}: room {room!r} is not in ROOMS of tests/test_imports.py; give it its place there")
            continue
        for statement, runs in _import_statements(ast.parse(path.read_text(), filename=str(path))):
            for name in _imported_modules(statement, module, is_package):
                here = f"{where}:{statement.lineno}"
                root = name.split(".")[0]
                if root == "flowrl":
                    other = _room(name, package)
                    if {(room, other), (room.split(".")[0], other.split(".")[0])} & STRANGERS:
                        found.append(f"{here}: {room} imports {other}; what both need belongs in nn or the core")
                    elif other in ROOMS and ROOMS.index(other) > ROOMS.index(room):
                        found.append(f"{here}: {room} imports {other}, which stands below it")
                elif root in sys.stdlib_module_names or root in runtime:
                    continue
                elif runs and not (room == "scripts" and path.name != "__init__.py" and root in optional):
                    found.append(f"{here}: {root} is no runtime dependency; import it inside the function that uses it")
                elif root not in optional:
                    found.append(f"{here}: {root} is declared neither as a dependency nor in an extra")
                elif room in CORE and root not in CORE_OPTIONAL.get(room, ()):
                    found.append(f"{here}: the core does not know {root}")
    return found


def _late_imports(package):
    """Where a module imports one of ours inside a function."""
    found = []
    for path, module, is_package in _modules(package):
        if _room(module, package) == "scripts" and path.name in BEGINNINGS:
            continue
        for function in ast.walk(ast.parse(path.read_text(), filename=str(path))):
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                for statement in ast.walk(function):
                    if isinstance(statement, ast.Import | ast.ImportFrom):
                        names = _imported_modules(statement, module, is_package)
                        where = f"{path.relative_to(package.parent)}:{statement.lineno}"
                        found += [f"{where}: {name}" for name in names if name.split(".")[0] == "flowrl"]
    return sorted(set(found))


def test_no_function_imports_a_module_of_ours():
    assert _late_imports(PACKAGE) == []


def test_late_imports_are_found(tmp_path):
    package = tmp_path / "flowrl"
    (package / "scripts" / "rlx").mkdir(parents=True)
    late = "def f():\n    def g():\n        from flowrl.rl import data\n        import numpy\n    return g\n"
    for name in ("_budget.py", "scripts/_cli.py", "scripts/rlx/_program.py"):
        (package / name).write_text(f"import flowrl\n{late}")
    places = ("flowrl/_budget.py:4", "flowrl/scripts/rlx/_program.py:4")
    assert _late_imports(package) == [f"{place}: flowrl.rl" for place in places]


def test_imports_flow_down():
    assert _violations(PACKAGE, *_declared()) == []


@pytest.mark.parametrize(
    ("file", "source", "complaint"),
    [
        ("_budget.py", "from flowrl._transport import transport", "_budget imports _transport"),
        ("_budget.py", "def f():\n    from flowrl import transport", "_budget imports flowrl"),
        ("_flow/_svgd.py", "from .._solver import Euler", "_flow imports _solver"),
        ("_flow/_svgd.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import flowrl.rl", "imports rl"),
        ("_select.py", "def f():\n    import gymnasium", "the core does not know gymnasium"),
        ("rl/__init__.py", "import flowrl.rlhf", "rl imports rlhf"),
        ("rlhf/_model.py", "from flowrl import rl", "rlhf imports rl"),
        ("nn/_mlp.py", "from flowrl.rl import learner", "nn imports rl"),
        ("rl/data/files/_x.py", "from flowrl.rl.data.sources import D4RL", "rl.data.files imports rl.data.sources"),
        ("rl/data/sources/_x.py", "from flowrl.rl.data._load import make_env", "rl.data.sources imports rl.data,"),
        ("rl/data/replay/_x.py", "from flowrl.rl.data import Transitions", "rl.data.replay imports rl.data,"),
        ("rl/data/files/_x.py", "from flowrl.rl.data.replay import Replay", "rl.data.files imports rl.data.replay;"),
        ("rl/_data.py", "try:\n    import ogbench\nexcept ImportError:\n    pass", "inside the function"),
        ("rl/_data.py", "def f():\n    import torch", "declared neither"),
        ("_new.py", "", "give it its place"),
    ],
)
def test_wrong_imports_are_found(tmp_path, file, source, complaint):
    path = tmp_path / "flowrl" / file
    path.parent.mkdir(parents=True)
    path.write_text(source)
    (violation,) = _violations(tmp_path / "flowrl", *_declared())
    assert complaint in violation


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("_transport.py", "from ._budget import Budget\nimport jax.numpy as jnp\nimport equinox as eqx"),
        ("_flow/__init__.py", "from ._svgd import SVGD as SVGD\nfrom flowrl._kernel import RBF"),
        ("plot.py", "def f():\n    import matplotlib.pyplot as plt\n    return plt"),
        (
            "rl/_learner.py",
            "from flowrl import SVGD, transport\nfrom flowrl.nn import MLP\ndef f():\n    import ogbench",
        ),
    ],
)
def test_right_imports_pass(tmp_path, file, source):
    path = tmp_path / "flowrl" / file
    path.parent.mkdir(parents=True)
    path.write_text(source)
    assert _violations(tmp_path / "flowrl", *_declared()) == []


def _behind_doors(package=PACKAGE):
    """Imports of a room's private module from outside of the room, one sentence each."""
    found = []
    for path, module, is_package in _modules(package):
        here = module if is_package else module.rpartition(".")[0]
        for statement, _ in _import_statements(ast.parse(path.read_text(), filename=str(path))):
            for name in _imported_modules(statement, module, is_package):
                parts = name.split(".")
                for i, part in enumerate(parts[1:], 1):
                    owner = ".".join(parts[:i])
                    inside = here == owner or here.startswith(f"{owner}.")
                    is_room = package.parent.joinpath(*parts[: i + 1]).is_dir()
                    # The modules of the core stand beside each other, each a room of its own.
                    if parts[0] == "flowrl" and part.startswith("_") and owner != "flowrl" and not (inside or is_room):
                        where = f"{path.relative_to(package.parent)}:{statement.lineno}"
                        found.append(f"{where}: {name} is private to {owner}; import it from there")
    return found


def test_rooms_are_entered_by_their_doors():
    assert _behind_doors() == []


def test_an_import_behind_a_door_is_found(tmp_path):
    for file, source in (
        ("rl/networks/_critic.py", ""),
        ("rl/networks/__init__.py", "from flowrl.rl.networks._critic import Critic"),
        ("rl/learning/_vgf.py", "from flowrl.rl.networks._critic import Critic"),
    ):
        path = tmp_path / "flowrl" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    (found,) = _behind_doors(tmp_path / "flowrl")
    assert "rl/learning/_vgf.py:1: flowrl.rl.networks._critic is private to flowrl.rl.networks" in found


@pytest.mark.thorough
def test_import_needs_no_optional_package():
    """A new process, because this one has long imported everything."""
    optional = _declared()[1]
    rooms = [f"flowrl.{name}" for name in ("nn", "rl", "rlhf") if (PACKAGE / name / "__init__.py").is_file()]
    code = f"import json, sys\nimport {', '.join(['flowrl', *rooms])}\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    loaded = {name.split(".")[0] for name in json.loads(done.stdout)}
    assert not loaded & optional


@pytest.mark.parametrize("module", ["flowrl", "flowrl.rl", "flowrl.rlhf", "flowrl.sharding"])
@pytest.mark.thorough
def test_no_import_starts_a_device(module):
    """`jax.distributed.initialize`, and flags of XLA, must come before the first array."""
    words = f"import {module}; from jax._src import xla_bridge; raise SystemExit(len(xla_bridge._backends))"
    assert subprocess.run([sys.executable, "-c", words], check=False, timeout=120).returncode == 0
