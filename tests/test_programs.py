"""The programs of the README and the docs: short, and they do what they are said to do."""

import ast
import importlib.util
import pathlib
import runpy
import subprocess
import sys

import numpy as np
import pytest
from problems import distances

SNIPPETS = pathlib.Path(__file__).resolve().parents[1] / "docs" / "snippets"
PROGRAMS = ["posterior", "acting", "sample", "tokens", "align", "from_pymc"]


def _run(name):
    return runpy.run_path(str(SNIPPETS / f"{name}.py"))


def _code(name):
    """Its lines below the docstring."""
    source = (SNIPPETS / f"{name}.py").read_text()
    lines = source.splitlines()[ast.parse(source).body[1].lineno - 1 :]
    return [line for line in lines if line.strip() and not line.strip().startswith("#")]


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_has_at_most_15_lines_of_code(name):
    assert len(_code(name)) <= 15
    assert all(len(line) <= 120 for line in (SNIPPETS / f"{name}.py").read_text().splitlines())


def test_every_program_is_tested():
    assert sorted(path.stem for path in SNIPPETS.glob("*.py")) == sorted(PROGRAMS)


@pytest.mark.thorough
def test_posterior_has_the_mean_and_deviation_of_a_quadrature():
    program = _run("posterior")
    inputs, labels = np.asarray(program["inputs"], np.float64), np.asarray(program["labels"])
    axis = np.linspace(-4, 6, 301)
    grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)
    margins = np.where(labels, 1, -1) * (grid @ inputs.T)
    log_density = -np.logaddexp(0, -margins).sum(axis=1) - 0.5 * np.sum(grid**2, axis=1)
    weight = np.exp(log_density - log_density.max())
    weight /= weight.sum()
    mean = weight @ grid
    deviation = np.sqrt(weight @ (grid - mean) ** 2)
    np.testing.assert_allclose(program["mean"], mean, atol=0.02)
    np.testing.assert_allclose(program["deviation"], deviation, rtol=0.05)


def test_acting_improves_actions_in_one_compiled_program():
    program = _run("acting")
    assert program["act"]._cache_size() == 1
    best = np.tanh(np.asarray(program["states"]))
    start = np.asarray(program["candidates"])

    def regret(actions):
        return np.mean(np.sum((np.asarray(actions) - best) ** 2, axis=-1))

    best_of_8 = np.mean(np.min(np.sum((start - best[:, None]) ** 2, axis=-1), axis=1))
    assert regret(program["bold"]) < 0.1 * regret(program["cautious"]) < 0.1 * best_of_8
    assert np.abs(program["bold"]).max() <= 1


def test_tokens_gain_reward_within_the_budget():
    program = _run("tokens")
    reference, moved = np.asarray(program["reference"]), np.asarray(program["solution"].particles)
    score = np.asarray(program["embedding"] @ program["wish"])  # of each token

    def reward(tokens):
        return score[tokens].sum(axis=-1)

    assert program["tokens"].shape == (6,)
    best_of_n = reward(reference.argmax(axis=-1)).max()
    assert best_of_n < reward(np.asarray(program["tokens"])) <= 6 * score.max()
    assert reward(moved.argmax(axis=-1)).mean() > reward(reference.argmax(axis=-1)).mean()
    assert distances(reference, moved).max() <= 8


@pytest.mark.thorough
def test_two_directories_and_strings_become_texts(monkeypatch):
    for package in ("tokenizers", "jinja2", "safetensors"):
        pytest.importorskip(package)
    assert len(_code("align")) <= 8
    models = SNIPPETS.parents[1] / "tests" / "rlhf" / "reference_texts"
    prompts = ["the film", "is the cast good, or late?"]
    monkeypatch.setattr(sys, "argv", ["align.py", str(models / "chat"), str(models / "reward"), *prompts])
    program = _run("align")
    answers = program["answers"]
    assert answers.prompts == tuple(prompts)
    assert len(program["texts"]) == 2
    assert all(text.strip() for text in program["texts"])
    samples = answers.sample_scores
    assert samples.shape == (2, 8)
    # Better than one sample, whichever of the two they are: moved texts, or the best of the samples.
    assert program["scores"].mean() >= samples.max(axis=1).mean() > samples.mean()
    assert program["verdict"].startswith("Moved texts" if answers.steps else "The best of 8 samples")
    assert f"{answers.forwards:.0f} forwards each" in program["verdict"]


@pytest.mark.thorough
def test_a_numpyro_model_is_sampled_and_summarised():
    """Eight schools, beside a quadrature over the spread, given which all else is normal."""
    pytest.importorskip("arviz_stats")
    program = _run("sample")
    errors, effects = np.asarray(program["data"], np.float64)
    spread = np.geomspace(1e-3, 300, 4000)
    variance = errors**2 + spread[:, None] ** 2
    precision = (1 / variance).sum(axis=1) + 1 / 25
    mean = (effects / variance).sum(axis=1) / precision
    log_weight = -0.5 * (np.log(variance) + effects**2 / variance).sum(axis=1) + 0.5 * (
        mean**2 * precision - np.log(precision)
    )
    weight = np.exp(log_weight - log_weight.max()) / (1 + (spread / 5) ** 2) * np.gradient(spread)
    weight /= weight.sum()
    table = program["table"]
    assert float(table.loc["mean", "mean"]) == pytest.approx(weight @ mean, abs=0.3)
    assert float(table.loc["spread", "mean"]) == pytest.approx(weight @ spread, abs=0.4)


@pytest.mark.thorough
@pytest.mark.skipif(importlib.util.find_spec("pymc") is None, reason="needs pymc, which the extras do not bring")
def test_a_pymc_model_is_sampled_like_its_quadrature():
    """In a process of its own: PyMC warns, and changes JAX's precision."""
    code = f"import runpy; print(runpy.run_path({str(SNIPPETS / 'from_pymc.py')!r})['sites']['rate'].mean())"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    rate = np.linspace(1e-4, 12, 20_000)
    weight = np.exp(-(rate**2) / 8 - 3 * rate + 6 * np.log(rate))
    assert float(done.stdout) == pytest.approx(weight @ rate / weight.sum(), abs=0.1)
