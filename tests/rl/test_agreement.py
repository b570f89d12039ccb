"""Agreement of critics, on values whose ranks and gradients are known."""

# ruff: noqa: ARG002

import dataclasses
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from rl.toys import bandit

from flowrl import Budget
from flowrl.rl import (
    AbstractState,
    AbstractValueBased,
    Agent,
    EliteMean,
    Mean,
    Policy,
    Standardizer,
    Uniform,
    compare_critics,
    make_replay,
)
from flowrl.rl.learning import baselines

F32 = jnp.float32


class Nothing(AbstractState):
    """Nothing is learned."""

    step: Any
    key: Any


class Linear(AbstractValueBased):
    """Members' values are slopes · a."""

    slopes: Any
    batch_size: int = 1
    selection: Any = Mean()
    shift: float = eqx.field(static=True, default=0.0)

    def init(self, observation_size, action_size, *, key):
        return Nothing(jnp.zeros((), jnp.int32), key)

    def update(self, state, replay, rows, key):
        raise NotImplementedError

    def propose(self, state, observation, key):
        return jr.uniform(key, (2,), F32, -1, 1)

    def improve(self, state, observation, particles, budget):
        raise NotImplementedError

    def values(self, state, observation, actions):
        return self.slopes @ actions.T + self.shift

    def unit(self, state):
        return jnp.ones((), F32)


def agent(*slopes, shift=0.0) -> Agent:
    linear = Linear(slopes=jnp.asarray(slopes, F32), shift=shift)
    return Agent(linear, linear.init(3, 2, key=jr.key(0)), Standardizer(jnp.zeros(3, F32), jnp.ones(3, F32)))


def replay():
    data = bandit(80)
    return make_replay(data, Standardizer.fit(data.observations), discount=0.0)


BEST = Policy("best", 8)


def compare(*agents, policy=BEST, **changes):
    return compare_critics(agents, policy, replay(), **{"candidates": 16, "states": 60, "key": jr.key(0)} | changes)


@pytest.mark.thorough
def test_members_that_agree_or_contradict_each_other():
    same, against = compare(agent((1, 2), (2, 4))), compare(agent((1, 2), (-1, -2)))
    assert (same.member_rank, same.member_cosine) == pytest.approx((1, 1), abs=1e-5)
    assert (against.member_rank, against.member_cosine) == pytest.approx((-1, -1), abs=1e-5)
    across = compare(agent((1, 0), (0, 1)))
    assert across.member_cosine == pytest.approx(0, abs=1e-6)
    assert abs(across.member_rank) < 0.1
    assert np.isnan([same.agent_rank, same.agent_cosine, same.gain_elsewhere]).all()


def test_agents_are_compared_by_the_value_that_selects():
    """Means of (1, 0) and (0, 1) are (1, 1)/2, whose angle to (1, 0) is 45 degrees."""
    found = compare(agent((1, 0), (0, 1)), agent((1, 0), (1, 0)), agent((3, 0), (3, 0)))
    assert found.agent_cosine == pytest.approx((2 / 2**0.5 + 1) / 3, abs=1e-5)
    assert 0.3 < found.agent_rank < 1


@pytest.mark.thorough
def test_a_gain_is_in_spreads_of_the_critic_that_scores_it():
    """One critic is the other's opposite, in another unit and from another origin: what one gains the other loses."""
    found = compare(agent((1, 1)), agent((-50, -50), shift=7.0), policy=Policy("best", 16))
    assert found.gain > 1
    assert found.gain_elsewhere == pytest.approx(-found.gain, rel=1e-4)
    at_random = compare(agent((1, 1)), policy=Policy("one", 16, Uniform()), states=80)
    assert abs(at_random.gain) < 0.4
    assert np.isnan(compare(agent((1, 1))).member_rank)


def test_what_cannot_be_compared_is_refused():
    for changes in ({"candidates": 1}, {"states": 0}):
        with pytest.raises(ValueError, match="candidates >= 2"):
            compare(agent((1, 1)), **changes)
    with pytest.raises(ValueError, match="give agents"):
        compare()
    cloning = baselines.make("bc", hidden=(8,))
    bc = dataclasses.replace(agent((1, 1)), algorithm=cloning, state=cloning.init(3, 2, key=jr.key(0)))
    with pytest.raises(ValueError, match="BC has no values to compare"):
        compare(bc, policy=Policy("one", 1))
    with pytest.raises(ValueError, match="EliteMean works in the noise"):
        compare(agent((1, 1)), policy=Policy("a", 8, EliteMean(2)))
    with pytest.raises(ValueError, match="a: BC has no values to move"):
        compare(bc, policy=Policy("a", 8, Budget(1, 0.1)))
