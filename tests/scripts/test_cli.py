"""The console command: its subcommands, what it says when one is unknown, and when a package is missing."""

import ast
import importlib
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from flowrl.scripts import _cli, main

ROOT = Path(__file__).resolve().parents[2]


def test_the_entry_point_is_the_module():
    entry = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]["flowrl"]
    module, _, name = entry.partition(":")
    assert getattr(importlib.import_module(module), name) is main


@pytest.mark.parametrize("words", [[], ["--help"]])
def test_help_lists_the_commands_with_a_line_each(words, capsys):
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 0
    said = capsys.readouterr().out
    for name, command in _cli.COMMANDS.items():
        assert any(line.split()[:1] == [name] and command.about in line for line in said.splitlines())


def test_an_unknown_command_suggests_near_names():
    with pytest.raises(SystemExit, match=r"^flowrl: no command 'ofline'; did you mean offline"):
        main(["ofline"])


@pytest.mark.parametrize(("name", "package"), [("offline", "tyro"), ("align", "tokenizers"), ("posterior", "numpyro")])
def test_a_missing_package_is_one_line_that_names_the_extra(monkeypatch, name, package):
    monkeypatch.setitem(sys.modules, package, None)
    extras = _cli.COMMANDS[name].extras
    with pytest.raises(SystemExit) as ended:
        main([name])
    assert str(ended.value.code).startswith(f"flowrl {name}: {package} is needed")
    assert f'pip install "flowrl-transport[{extras}]"' in str(ended.value.code)
    assert "\n" not in str(ended.value.code)


@pytest.mark.thorough
def test_programs_are_imported_when_chosen():
    code = "import sys, flowrl.scripts; print([m for m in sys.modules if 'scripts.' in m], 'tyro' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['flowrl.scripts._cli'] False"


@pytest.mark.parametrize("name", _cli.COMMANDS)
def test_every_command_has_its_help(name, capsys):
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    assert f"flowrl {name}" in capsys.readouterr().out


LESSONS = sorted((ROOT / "examples").glob("*.py"))


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_a_lesson_is_short_and_uses_what_is_public(path):
    source = path.read_text()
    assert len(source.splitlines()) <= 120
    others = {other.stem for other in LESSONS}
    for node in ast.walk(ast.parse(source)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
        modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else names
        for module in modules:
            assert module.split(".")[0] not in others
            assert not module.startswith("flowrl.scripts")
        if any(module.split(".")[0] == "flowrl" for module in modules):
            assert not any(part.startswith("_") for module in (*modules, *names) for part in module.split("."))


# These need nothing but the package.
BARE = ("bandit", "scale_out")


@pytest.mark.parametrize("name", BARE)
def test_a_lesson_without_an_extra_asks_for_none(name):
    source = (ROOT / "examples" / f"{name}.py").read_text()
    modules = {m for node in ast.walk(ast.parse(source)) for m in _imported(node)}
    allowed = {"equinox", "flowrl", "jax", "numpy", "optax", "scipy"} | set(sys.stdlib_module_names)
    assert {module.split(".")[0] for module in modules} <= allowed


def _imported(node):
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module] if isinstance(node, ast.ImportFrom) else []


@pytest.mark.parametrize("path", [p for p in LESSONS if p.stem not in BARE], ids=lambda path: path.stem)
@pytest.mark.thorough
def test_a_lesson_names_its_extra_in_one_line(path, tmp_path):
    """With no package of any extra."""
    hidden = ("tyro", "rich", "matplotlib", "gymnasium", "tokenizers", "safetensors", "numpyro", "sklearn")
    words = [str(path), "--out", str(tmp_path)]
    code = f"import sys, runpy; sys.modules.update(dict.fromkeys({hidden})); sys.argv = {words}"
    code += f"; runpy.run_path({str(path)!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode != 0
    assert "pip install" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_the_lessons_of_offline_and_online_training_run(tmp_path):
    env = "pointmaze-medium-navigate-singletask-task1-v0"
    small = ["--env", env, "--eval-episodes", "1"]
    for name, words in (
        ("offline_rl", ["--steps", "50"]),
        ("online_finetune", ["--steps", "40", "--offline-steps", "50"]),
    ):
        out = tmp_path / name
        command = [sys.executable, str(ROOT / "examples" / f"{name}.py"), *small, *words, "--out", str(out)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "VGF L=1" in done.stdout
        assert (out / "results.csv").exists()
