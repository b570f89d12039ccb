"""The example for a user's own data: short, and it trains and acts."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "custom_data.py"


def test_it_has_fewer_than_sixty_lines():
    assert len(EXAMPLE.read_text().splitlines()) < 60


@pytest.mark.slow
def test_it_trains_on_a_file_and_acts_in_its_environment(tmp_path):
    words = [sys.executable, str(EXAMPLE), "--updates", "3000"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "pendulum.npz").exists()
    rows = [line.split("|")[1:3] for line in done.stdout.splitlines() if line.startswith("| ")][1:]
    scores = {name.strip(): float(score) for name, score in rows}
    # The weak controller loses about 1,000 an episode; what climbs its critic does better.
    assert list(scores) == ["behaviour", "best-of-8", "VGF L=3"]
    assert scores["VGF L=3"] > scores["behaviour"] + 100
    again = [*words[:2], "--data", "runs/pendulum.npz", "--updates", "1001"]
    done = subprocess.run(again, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "multiple of interval" in done.stderr
