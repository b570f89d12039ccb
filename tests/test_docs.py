"""Every Python block of README, docs and docstrings runs as it stands."""

import ast
import pathlib
import re
import textwrap

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
FENCE = re.compile(r"^( *)```python\n(.*?)^\1```", re.MULTILINE | re.DOTALL)


def _blocks():
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        yield path, path.read_text()
    for path in sorted((ROOT / "flowrl").rglob("*.py")):
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
def test_block_runs(code, capsys):
    exec(compile(code, "block", "exec"), {"__name__": "block"})
    capsys.readouterr()


def test_there_are_blocks():
    assert len(CASES) >= 4
