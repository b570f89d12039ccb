"""Every public name says what it is, explains its arguments and has its place in docs/api."""

import ast
import dataclasses
import importlib
import inspect
import itertools
import pathlib
import re
import textwrap
import types

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "flowrl"
API = ROOT / "docs" / "api"


# Rooms that only the library itself goes in and out of: what users take from them is a name of `flowrl.rl` or
# `flowrl.rlhf`. Programs are commands, not names.
ROOMS = (
    "flowrl.rl.acting",
    "flowrl.rl.data.files",
    "flowrl.rl.data.generators",
    "flowrl.rl.data.replay",
    "flowrl.rl.data.schema",
    "flowrl.rl.data.sources",
    "flowrl.rl.envs",
    "flowrl.rl.learning",
    "flowrl.rl.networks",
    "flowrl.rlhf.alignment",
    "flowrl.rlhf.generation",
    "flowrl.rlhf.learning",
    "flowrl.rlhf.models",
    "flowrl.rlhf.spaces",
    "flowrl.scripts",
)
# Public modules inside a room, by the name that users call them.
INSIDE = {"flowrl.rl.learning.baselines": "flowrl.rl.baselines", "flowrl.rl.learning.presets": "flowrl.rl.presets"}


def _public_modules():
    """Dotted names of flowrl and of every module in it that users import from."""
    names = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        name = ".".join(parts)
        in_room = any(name == room or name.startswith(f"{room}.") for room in ROOMS)
        if name in INSIDE or not (in_room or any(part.startswith("_") for part in parts)):
            names.append(name)
    return names


def _source(module):
    base = ROOT.joinpath(*module.split("."))
    return base / "__init__.py" if base.is_dir() else base.with_name(f"{base.name}.py")


def _public_names(module):
    """(name, whether it is defined there): `import X as X`, definitions and `__all__`; plain imports are private."""
    names = {}
    for node in ast.parse(_source(module).read_text()).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.name: False for alias in node.names if alias.asname == alias.name}
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names[node.name] = True
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found = [target.id for target in targets if isinstance(target, ast.Name)]
            if "__all__" in found:
                names |= dict.fromkeys(ast.literal_eval(node.value), False)
            names |= dict.fromkeys(found, True)
    return [(name, defined) for name, defined in names.items() if not name.startswith("_")]


def _public():
    cases = []
    for module in _public_modules():
        cases += [pytest.param(module, name, defined, id=f"{module}.{name}") for name, defined in _public_names(module)]
    return cases


def _directives():
    """Every `::: name` of the API pages."""
    pages = sorted(API.glob("*.md"))
    return [name for page in pages for name in re.findall(r"^::: *([\w.]+)", page.read_text(), re.MULTILINE)]


def _documented_arguments(docstring):
    """The names in the `Args:` and `Attributes:` sections of a Google docstring."""
    names, indent = set(), None
    for line in inspect.cleandoc(docstring).splitlines():
        if re.match(r"(Args|Arguments|Attributes):\s*$", line):
            indent = -1
        elif indent is not None and line.strip():
            depth = len(line) - len(line.lstrip())
            if depth == 0:
                indent = None
                continue
            indent = depth if indent == -1 else indent
            if depth == indent and (match := re.match(r"\s*([*\w, ]+?)\s*(?:\([^)]*\))?:(?:\s|$)", line)):
                names |= {name.strip().lstrip("*") for name in match.group(1).split(",")}
    return names


def _documented_fields(cls, package="flowrl"):
    """The fields of a class with a string of their own on the next line, which mkdocstrings reads too."""
    names = set()
    for base in cls.__mro__:
        if base.__module__.split(".")[0] == package:
            body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0].body
            for field, below in itertools.pairwise(body):
                is_string = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
                if is_string and isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                    names.add(field.target.id)
    return names


def _undocumented_arguments(thing, docstring):
    try:
        parameters = inspect.signature(thing).parameters
    except (TypeError, ValueError):  # some built-in and enumeration classes have none
        return set()
    documented = _documented_arguments(docstring) | (_documented_fields(thing) if inspect.isclass(thing) else set())
    return {name for name in parameters if name not in ("self", "cls")} - documented


def _methods(cls):
    """Public methods that flowrl itself defines for a class, inherited ones included."""
    for name, member in inspect.getmembers(cls):
        if name.startswith("_") or not (inspect.isroutine(member) or isinstance(member, property)):
            continue
        owner = next((base for base in cls.__mro__ if name in vars(base)), cls)
        if owner.__module__.split(".")[0] == "flowrl" and name not in _field_names(cls):
            yield name, inspect.getattr_static(cls, name), member


def _field_names(cls):
    return {field.name for field in dataclasses.fields(cls)} if dataclasses.is_dataclass(cls) else set()


def _takes_arguments(cls):
    """Abstract classes and protocols are never made, and exceptions are made by us."""
    is_abstract = inspect.isabstract(cls) or cls.__name__.startswith("Abstract") or getattr(cls, "_is_protocol", False)
    return not is_abstract and not issubclass(cls, BaseException)


@pytest.mark.parametrize(("module", "name", "defined"), _public())
def test_public_name_is_documented(module, name, defined):
    thing = getattr(importlib.import_module(module), name)
    if isinstance(thing, types.ModuleType):
        assert thing.__doc__, f"module {module}.{name} has no docstring"
        return
    if not (inspect.isclass(thing) or inspect.isroutine(thing) or hasattr(thing, "__wrapped__")):
        called = f"{INSIDE.get(module, module)}.{name}"
        assert not defined or called in _directives(), f"{called} is on no page of docs/api"
        return
    # A dataclass without a docstring is given its signature as one.
    doc = inspect.getdoc(thing) or ""
    assert doc, f"{module}.{name} has no docstring"
    assert not doc.startswith(f"{name}("), f"{module}.{name} has no docstring"
    if not inspect.isclass(thing):
        assert _undocumented_arguments(thing, doc) == set()
        return
    if _takes_arguments(thing):
        init = inspect.getdoc(thing.__init__) or ""
        # Fields that several classes share are explained once, where the class that they derive from declares them.
        shared = [inspect.getdoc(base) or "" for base in thing.__mro__]
        assert _undocumented_arguments(thing, "\n\n".join([doc, init, *shared])) == set()
    for method, static, member in _methods(thing):
        doc = inspect.getdoc(member) or ""
        assert doc, f"{module}.{name}.{method} has no docstring"
        if not isinstance(static, property):
            # An override may say what is new in a sentence; its arguments are those of the method that it overrides.
            inherited = [inspect.getdoc(getattr(base, method, None)) or "" for base in thing.__mro__]
            assert _undocumented_arguments(member, "\n\n".join([doc, *inherited])) == set(), f"{module}.{name}.{method}"


@pytest.mark.parametrize(("module", "name", "defined"), _public())
def test_public_name_has_its_place_in_the_docs(module, name, defined):
    """By a line `::: flowrl.X` of its own or, where it is defined in a public module, by the module's line."""
    pages = set(_directives())
    thing = getattr(importlib.import_module(module), name)
    module = INSIDE.get(module, module)
    called = INSIDE.get(thing.__name__, thing.__name__) if isinstance(thing, types.ModuleType) else ""
    if called.startswith(f"{module}."):
        names = [member for member, _ in _public_names(thing.__name__)]
        assert called in pages or {f"{called}.{member}" for member in names} <= pages
    else:
        placed = f"{module}.{name}" in pages or (defined and module in pages)
        assert placed, f"no page in docs/api has a line '::: {module}.{name}'"


@pytest.mark.parametrize("directive", _directives())
def test_docs_name_only_what_exists(directive):
    module, names = directive, []
    while module and not _source(module).is_file():
        module, _, name = module.rpartition(".")
        names.insert(0, name)
    assert module, f"docs/api names {directive}, which does not exist"
    thing = importlib.import_module(module)
    for name in names:
        assert hasattr(thing, name), f"docs/api names {directive}, which does not exist"
        thing = getattr(thing, name)


def test_docs_name_nothing_twice():
    directives = _directives()
    assert sorted(set(directives)) == sorted(directives)


def test_arguments_are_read_from_google_docstrings():
    docstring = """One line.

    Args:
        steps: how many.
            With a second line: it is not a name.
        size (float): how far.
        *args: the rest.
        **kwargs: more.

    Returns:
        answer: not an argument.
    """
    assert _documented_arguments(docstring) == {"steps", "size", "args", "kwargs"}


class _Fields:
    size: int
    """How many."""

    other: int


def test_arguments_are_read_from_strings_below_fields():
    assert _documented_fields(_Fields, package=__name__.split(".")[0]) == {"size"}
