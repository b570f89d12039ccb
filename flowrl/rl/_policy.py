"""How a trained agent acts: candidates from the reference, transported within a test budget, one selected.

All policies of one evaluation (budgets, controls, best-of-N) are rows of arrays, so one compiled program serves them
all, and each acts on the same reference samples in the same episode at the same time.
"""

import dataclasses
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float, Int

from flowrl._budget import Budget
from flowrl._custom_types import Key
from flowrl._select import uniform_select
from flowrl.rl._replay import Standardizer
from flowrl.rl._vgf import VGF, VGFState, transported, value


@dataclasses.dataclass(frozen=True)
class Policy:
    """One way to act.

    Attributes:
        name: what tables call it.
        candidates: reference samples that may be chosen from.
        steps: L_test; 0 leaves the samples where the reference put them.
        step_size: ε of the test budget, in the unit of the training budget's.
        select: "best" takes the candidate of the highest value, "uniform" one at random: the flow by itself.
        noise: a control: each particle is moved as far as the flow would move it, but in a random direction.
    """

    name: str
    candidates: int
    steps: int = 0
    step_size: float = 0.0
    select: Literal["best", "uniform"] = "best"
    noise: bool = False


class Agent(eqx.Module):
    """What acting needs of a training run.

    Attributes:
        vgf: the algorithm.
        state: its networks.
        standardizer: constants of the observations.
    """

    vgf: VGF
    state: VGFState
    standardizer: Standardizer


class PolicyTable(eqx.Module):
    """Policies as arrays, one row a policy.

    Attributes:
        candidates: (policies,).
        steps: (policies,).
        step_size: (policies,).
        best: (policies,), select the best, else one at random.
        noise: (policies,), the control of random directions.
        flowing: N, particles that are transported together.
        drawn: the largest number of candidates.
        longest: the largest number of steps.
    """

    candidates: Int[Array, " policies"]
    steps: Int[Array, " policies"]
    step_size: Float[Array, " policies"]
    best: Bool[Array, " policies"]
    noise: Bool[Array, " policies"]
    flowing: int = eqx.field(static=True)
    drawn: int = eqx.field(static=True)
    longest: int = eqx.field(static=True)

    def __init__(self, policies: tuple[Policy, ...]):
        """Tabulate policies.

        Args:
            policies: at least one; those with steps > 0 must have the same number of candidates.

        Raises:
            ValueError: no policies, equal names, a number out of range, or transported policies of different sizes.
        """
        if not policies:
            raise ValueError("no policies to evaluate.")
        names = [p.name for p in policies]
        if len(set(names)) < len(names):
            raise ValueError(f"policies need different names, got {names}.")
        for p in policies:
            if p.candidates < 1 or p.steps < 0 or p.step_size < 0:
                raise ValueError(f"{p.name}: needs candidates >= 1, steps >= 0 and step_size >= 0.")
        sizes = {p.candidates for p in policies if p.steps > 0}
        if len(sizes) > 1:
            raise ValueError(f"transported policies must share their number of candidates, got {sorted(sizes)}.")
        self.candidates = jnp.asarray([p.candidates for p in policies], jnp.int32)
        self.steps = jnp.asarray([p.steps for p in policies], jnp.int32)
        self.step_size = jnp.asarray([p.step_size for p in policies], jnp.float32)
        self.best = jnp.asarray([p.select == "best" for p in policies])
        self.noise = jnp.asarray([p.noise for p in policies])
        self.flowing = sizes.pop() if sizes else min(p.candidates for p in policies)
        self.drawn = max(p.candidates for p in policies)
        self.longest = max(p.steps for p in policies)


class Acted(eqx.Module):
    """What was done in one state.

    Attributes:
        action: (act,).
        displacement: distance of the action from the reference sample it came from, root mean square over coordinates,
            in the budget's unit of length.
        value: its selection value.
    """

    action: Float[Array, " act"]
    displacement: Float[Array, ""]
    value: Float[Array, ""]


@eqx.filter_jit
def act(
    agent: Agent,
    table: PolicyTable,
    policy: Int[Array, " lanes"],
    observations: Float[Array, "lanes obs"],
    episode: Int[Array, " lanes"],
    time: Int[Array, " lanes"],
    key: Key,
) -> Acted:
    """Act in many states at once, each by its own policy. Compiled once for a table's shape.

    Args:
        agent: networks and constants.
        table: the policies.
        policy: row of the table for each lane.
        observations: raw observations.
        episode: index of the episode in each lane; with `time` it determines the randomness, whatever the policy.
        time: steps taken in that episode.
        key: randomness of the evaluation.

    Returns:
        Actions with their displacements and values, leaves (lanes, ...).
    """
    states = agent.standardizer(observations)

    def one(policy: Array, state: Array, episode: Array, time: Array) -> Acted:
        return _act(agent, table, policy, state, jr.fold_in(jr.fold_in(key, episode), time))

    return jax.vmap(one)(policy, states, episode, time)


def _act(agent: Agent, table: PolicyTable, policy: Array, state: Array, key: Key) -> Acted:
    reference_key, direction_key, select_key = jr.split(key, 3)
    networks, scale = agent.state, agent.state.scale
    size = scale.shape[0]
    noise = jr.normal(reference_key, (table.drawn, size), state.dtype)
    drawn = jax.vmap(lambda z: networks.reference.sample(state, z))(noise)

    start = drawn[: table.flowing]
    steps, budget = table.steps[policy], agent.vgf.train_budget
    budget = Budget(
        steps,
        table.step_size[policy],
        budget.temperature,
        scale=scale,
        max_steps=table.longest,
        max_displacement=budget.max_displacement,
    )
    flowed = transported(agent.vgf, networks.critic, state, start, budget).particles
    control = _random_directions(agent.vgf, start, flowed, scale, direction_key)
    ended = jnp.where(table.noise[policy], control, flowed)
    candidates = jnp.concatenate([ended, drawn[table.flowing :]])

    values = value(networks.critic, agent.vgf.selection, state, candidates)
    allowed = jnp.arange(table.drawn) < table.candidates[policy]
    values = jnp.where(allowed, values, jnp.nan)
    at_random = uniform_select(candidates, values, key=select_key).index
    best = jnp.argmax(jnp.where(jnp.isfinite(values), values, -jnp.inf))
    index = jnp.where(table.best[policy], best, at_random)
    move = (candidates[index] - drawn[index]) / scale
    return Acted(candidates[index], jnp.sqrt(jnp.mean(move**2)), values[index])


def _random_directions(vgf: VGF, start: Array, flowed: Array, scale: Array, key: Key) -> Array:
    """Move each particle by the length of its own transport, in a direction uniform on the sphere."""
    length = jnp.linalg.norm((flowed - start) / scale[None], axis=1, keepdims=True)
    direction = jr.normal(key, start.shape, start.dtype)
    direction = direction / jnp.linalg.norm(direction, axis=1, keepdims=True)
    return vgf.transport.domain.restrict(start + scale[None] * length * direction)
