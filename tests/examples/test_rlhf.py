"""examples/rlhf.py in a tiny setting: its table and files, and what it says without its extra."""

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
TINY = ("--prompts", "6", "--particles", "2", "--steps", "1", "--updates", "20")


def run(*options, path=ROOT):
    environment = os.environ | {"PYTHONPATH": f"{path}{os.pathsep}{ROOT}"}
    command = [sys.executable, str(ROOT / "examples" / "rlhf.py"), *map(str, options)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.thorough
def test_transport_stands_beside_best_of_n_at_equal_cost(tmp_path):
    pytest.importorskip("sklearn")
    done = run(*TINY, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr[-2000:]
    table = list(csv.DictReader((tmp_path / "run" / "results.csv").read_text().splitlines()))
    names = ["one sample", "best of 2", "best of 8, at equal cost", "transported, L = 1"]
    assert [row["answers"] for row in table] == names
    rewards = [float(row["reward"]) for row in table]
    # The samples of a smaller N are among those of a larger one.
    assert np.all(np.diff(rewards[:3]) > -1e-5)
    for row in table:
        assert 0 <= float(row["low"]) <= float(row["value"]) <= float(row["high"]) <= 1
    texts = json.loads((tmp_path / "run" / "texts.json").read_text())
    assert list(texts) == ["prompts", *names]
    assert all(len(answers) == 6 for answers in texts.values())
    assert all(name in done.stdout for name in names)
    assert re.search(r"the reward model agrees with \d+% of 200 unseen ones", done.stdout)


@pytest.mark.thorough
def test_a_missing_extra_is_named_in_one_line(tmp_path):
    (tmp_path / "sklearn.py").write_text("raise ImportError('not here')")
    done = run(*TINY, "--out", tmp_path / "run", path=tmp_path)
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert "sklearn" in line
    assert 'pip install -e ".[rlhf,examples]"' in line
    assert not (tmp_path / "run").exists()
