"""The example for a user's own data: short, and it trains and acts."""

import subprocess
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "custom_data.py"


def run(folder: Path, *words: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(EXAMPLE), *words], cwd=folder, capture_output=True, text=True, check=False
    )


def scores(table: str) -> dict[str, float]:
    rows = [line.split("|")[1:3] for line in table.splitlines() if line.startswith("| ")][1:]
    return {name.strip(): float(score) for name, score in rows}


def write_random_episodes(path: Path, episodes: int = 3) -> None:
    """Pendulum under random pushes, in gymnasium's layout: no next observations, the end a truncation."""
    rng, env = np.random.default_rng(0), gymnasium.make("Pendulum-v1")
    rows = []
    for episode in range(episodes):
        observation, over = env.reset(seed=episode)[0], False
        while not over:
            action = rng.uniform(-2, 2, 1).astype(np.float32)
            after, reward, terminated, truncated, _ = env.step(action)
            rows.append((observation, action, reward, terminated, truncated))
            observation, over = after, terminated or truncated
    names = ("observations", "actions", "rewards", "terminations", "truncations")
    np.savez(path, **{name: np.asarray(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)})


def test_it_has_fewer_than_sixty_lines():
    assert len(EXAMPLE.read_text().splitlines()) < 60


@pytest.mark.slow
def test_it_trains_on_a_users_file_and_acts_in_its_environment(tmp_path):
    write_random_episodes(tmp_path / "mine.npz")
    done = run(tmp_path, "--data", "mine.npz", "--env", "gym:Pendulum-v1", "--updates", "1000")
    assert done.returncode == 0, done.stderr
    assert "next_observations: taken from the next row; 3 last rows without one were dropped" in done.stdout
    measured = scores(done.stdout)
    assert list(measured) == ["behaviour", "best-of-8", "VGF L=3"]
    # 200 steps of a reward between -16.3 and 0.
    assert all(-3260 < score < 0 for score in measured.values())
    assert [path.name for path in tmp_path.iterdir()] == ["mine.npz"]
    refused = run(tmp_path, "--data", "mine.npz", "--updates", "1001")
    assert refused.returncode != 0
    assert "multiple of interval" in refused.stderr
    elsewhere = run(tmp_path, "--data", "mine.npz", "--env", "gym:MountainCarContinuous-v0")
    assert elsewhere.returncode != 0
    assert "not data of this environment" in elsewhere.stderr


@pytest.mark.slow
def test_it_records_its_own_data_and_improves_on_them(tmp_path):
    done = run(tmp_path, "--updates", "3000")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "pendulum.npz").exists()
    # The weak controller loses about 1,000 an episode; what climbs its critic does better.
    measured = scores(done.stdout)
    assert measured["VGF L=3"] > measured["behaviour"] + 100
