"""Episodes drawn frame by frame."""

import jax.numpy as jnp
import jax.random as jr
import pytest
from PIL import Image
from rl import environments

from flowrl.rl import Agent, Policy, ReferenceLearner, Standardizer, data, record_video
from flowrl.rl.learning import presets


@pytest.fixture(scope="module")
def agent():
    env = data.make_env(environments.goals, seed=0)
    size = env.observation_space.shape[0]
    vgf = presets.default(hidden=(8,), reference=ReferenceLearner(hidden=(8,)))
    unit = Standardizer(jnp.zeros(size, jnp.float32), jnp.ones(size, jnp.float32))
    return Agent(vgf, vgf.init(size, 2, key=jr.key(0)), unit)


@pytest.mark.thorough
def test_every_second_state_and_the_last_are_drawn(agent, tmp_path):
    """An episode has five steps: frames at t = 0, 2, 4 and 5, twice."""
    path = record_video(agent, Policy("best", 2), "factory:rl.environments:drawn", tmp_path / "a.gif", episodes=2)
    with Image.open(path) as film:
        greys = []
        for frame in range(film.n_frames):
            film.seek(frame)
            greys.append(film.convert("L").getpixel((3, 3)))
    assert greys == pytest.approx([0, 80, 160, 200] * 2, abs=2)


@pytest.mark.parametrize(
    ("env", "file", "error", "message"),
    [
        ("factory:rl.environments:drawn", "a.avi", ValueError, "end in .gif"),
        ("factory:rl.environments:goals", "a.gif", ValueError, 'frames need render_mode="rgb_array"'),
    ],
)
def test_what_cannot_be_drawn_is_refused(agent, tmp_path, env, file, error, message):
    with pytest.raises(error, match=message):
        record_video(agent, Policy("best", 2), env, tmp_path / file)
    assert not list(tmp_path.iterdir())
