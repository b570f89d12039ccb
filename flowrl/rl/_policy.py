"""How a trained agent acts: candidates from the reference, transported within a test budget, one selected.

All policies of one evaluation (budgets, controls, best-of-N) act in one compiled call, and on the same reference
samples in the same episode at the same time.
"""

import dataclasses
from typing import Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float, Int

from flowrl._budget import Budget
from flowrl._custom_types import Key
from flowrl._select import best_of_n, uniform_select
from flowrl.rl._replay import Standardizer
from flowrl.rl._vgf import VGF, VGFState, transported, value


@dataclasses.dataclass(frozen=True)
class Policy:
    """One way to act. Temperature and displacement cap are those of the training budget.

    Attributes:
        name: what tables call it.
        candidates: reference samples that may be chosen from.
        steps: L_test; 0 leaves the samples where the reference put them.
        step_size: ε of the test budget, in the unit of the training budget's.
        select: "best" takes the candidate of the highest value, "uniform" one at random: the flow by itself.
        noise: a control: each particle is moved as far as the flow would move it, but in a random direction (and
            projected on the domain, which can shorten the move).
    """

    name: str
    candidates: int
    steps: int = 0
    step_size: float = 0.0
    select: Literal["best", "uniform"] = "best"
    noise: bool = False

    def __post_init__(self):
        """Refuse numbers that make no sense."""
        if self.candidates < 1 or self.steps < 0 or not 0 <= self.step_size < float("inf"):
            raise ValueError(f"{self.name}: needs candidates >= 1, steps >= 0 and a finite step_size >= 0.")
        if self.select not in ("best", "uniform"):
            raise ValueError(f"{self.name}: select must be 'best' or 'uniform', got {self.select!r}.")


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


class Block(NamedTuple):
    """Lanes that share one program: the same number of candidates and of steps.

    Attributes:
        candidates: reference samples a state.
        steps: L_test.
        policies: indices of the policies that run here.
        lanes: indices of the lanes, contiguous.
    """

    candidates: int
    steps: int
    policies: tuple[int, ...]
    lanes: tuple[int, ...]


class PolicyTable(eqx.Module):
    """Policies as arrays, and which lanes can run them.

    Lanes are divided into blocks by what their policies cost: a lane that only ranks reference samples does not pay for
    the flow of another, nor for the samples of best-of-4N.

    Attributes:
        step_size: (policies,).
        best: (policies,), select the best, else one at random.
        noise: (policies,), the control of random directions.
        blocks: the division of the lanes.
    """

    step_size: Float[Array, " policies"]
    best: Bool[Array, " policies"]
    noise: Bool[Array, " policies"]
    blocks: tuple[Block, ...] = eqx.field(static=True)

    def __init__(self, policies: tuple[Policy, ...], lanes: int):
        """Tabulate policies.

        Args:
            policies: at least one, with different names.
            lanes: lanes to divide, in proportion to the number of policies of each cost.

        Raises:
            ValueError: no policies, equal names, or fewer lanes than blocks.
        """
        if not policies:
            raise ValueError("no policies to evaluate.")
        names = [p.name for p in policies]
        if len(set(names)) < len(names):
            raise ValueError(f"policies need different names, got {names}.")
        self.step_size = jnp.asarray([p.step_size for p in policies], jnp.float32)
        self.best = jnp.asarray([p.select == "best" for p in policies])
        self.noise = jnp.asarray([p.noise for p in policies])
        groups: dict[tuple[int, int], list[int]] = {}
        for i, p in enumerate(policies):
            groups.setdefault((p.candidates, p.steps), []).append(i)
        if lanes < len(groups):
            raise ValueError(f"{len(groups)} lanes or more are needed for these policies, got {lanes}.")
        # Every block gets a lane, the rest go where most policies wait for one.
        counts = dict.fromkeys(groups, 1)
        for _ in range(lanes - len(groups)):
            counts[max(groups, key=lambda g: len(groups[g]) / counts[g])] += 1
        first, blocks = 0, []
        for group, members in groups.items():
            blocks.append(Block(*group, tuple(members), tuple(range(first, first + counts[group]))))
            first += counts[group]
        self.blocks = tuple(blocks)


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

    def run(block: Block) -> Acted:
        def one(policy: Array, state: Array, episode: Array, time: Array) -> Acted:
            return _act(agent, table, block, policy, state, jr.fold_in(jr.fold_in(key, episode), time))

        lanes = slice(block.lanes[0], block.lanes[-1] + 1)
        return jax.vmap(one)(policy[lanes], states[lanes], episode[lanes], time[lanes])

    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *[run(block) for block in table.blocks])


def _act(agent: Agent, table: PolicyTable, block: Block, policy: Array, state: Array, key: Key) -> Acted:
    reference_key, direction_key, select_key = jr.split(key, 3)
    networks, scale = agent.state, agent.state.scale
    # One key a candidate: best-of-4N ranks the samples of best-of-N and more.
    keys = jax.vmap(lambda i: jr.fold_in(reference_key, i))(jnp.arange(block.candidates))
    noise = jax.vmap(lambda k: jr.normal(k, scale.shape, state.dtype))(keys)
    start = jax.vmap(lambda z: networks.reference.sample(state, z))(noise)

    ended = start
    if block.steps:
        train = agent.vgf.train_budget
        cap = train.max_displacement
        budget = Budget(block.steps, table.step_size[policy], train.temperature, scale=scale, max_displacement=cap)
        flowed = transported(agent.vgf, networks.critic, state, start, budget).particles
        control = _random_directions(agent.vgf, start, flowed, scale, direction_key)
        ended = jnp.where(table.noise[policy], control, flowed)

    values = value(networks.critic, agent.vgf.selection, state, ended)
    best, at_random = best_of_n(ended, values), uniform_select(ended, values, key=select_key)
    index = jnp.where(table.best[policy], best.index, at_random.index)
    move = (ended[index] - start[index]) / scale
    return Acted(ended[index], jnp.sqrt(jnp.mean(move**2)), values[index])


def _random_directions(vgf: VGF, start: Array, flowed: Array, scale: Array, key: Key) -> Array:
    """Move each particle by the length of its own transport, in a direction uniform on the sphere."""
    length = jnp.linalg.norm((flowed - start) / scale[None], axis=1, keepdims=True)
    direction = jr.normal(key, start.shape, start.dtype)
    direction = direction / jnp.linalg.norm(direction, axis=1, keepdims=True)
    return vgf.transport.domain.restrict(start + scale[None] * length * direction)
