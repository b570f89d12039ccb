"""Old names say their new ones, and the new ones exist."""

import functools
import importlib
import pathlib
import subprocess
import sys

import pytest

import flowrl
import flowrl.rl
import flowrl.rlhf
from flowrl._renamed import RENAMED


def _resolve(name):
    """The thing that a dotted name means, modules imported on the way being attributes of their parents."""
    return functools.reduce(getattr, name.split(".")[1:], flowrl)


@pytest.mark.parametrize("old", RENAMED)
def test_an_old_name_says_the_new_one(old):
    new = RENAMED[old]
    assert _resolve(new) is not None
    with pytest.raises(AttributeError, match=rf"{old} is called {new} now"):
        _resolve(old)


@pytest.mark.parametrize("old", ["flowrl.March", "flowrl.rl.Acted", "flowrl.rlhf.optimise"])
@pytest.mark.thorough
def test_an_old_name_in_an_import_says_so_too(old):
    module, name = old.rsplit(".", 1)
    done = subprocess.run(
        [sys.executable, "-c", f"from {module} import {name}"], capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert f"{old} is called {RENAMED[old]} now" in done.stderr


def test_names_that_never_were_are_ordinary_errors():
    for module in ("flowrl", "flowrl.rl", "flowrl.rlhf", "flowrl.rl.data"):
        with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
            importlib.import_module(module).nonsense  # noqa: B018


def test_the_changelog_lists_every_renamed_name():
    text = (pathlib.Path(__file__).parents[1] / "CHANGELOG.md").read_text()
    missing = [old for old, new in RENAMED.items() if f"| `{old}` | `{new}` |" not in text]
    assert missing == []
