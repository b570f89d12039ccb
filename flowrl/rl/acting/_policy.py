"""How a trained agent acts: candidates are proposed, transported within a test budget, and one is selected.

All policies of one evaluation (budgets, controls, best-of-N) act in one compiled call, and on the same proposals in the
same episode at the same time.
"""

import dataclasses
from typing import Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float, Int

from flowrl._custom_types import Key
from flowrl._select import best_of_n, softmax_select, uniform_select
from flowrl.rl.data.replay import Standardizer
from flowrl.rl.learning import AbstractAlgorithm, AbstractState

_SELECTIONS = ("best", "uniform", "softmax")


@dataclasses.dataclass(frozen=True)
class Policy:
    """One way to act. Whatever else a budget has, such as a temperature or a cap, is the algorithm's.

    Attributes:
        name: what tables call it.
        candidates: proposals that may be chosen from.
        steps: L_test; 0 leaves the proposals where they are.
        step_size: ε of the test budget, in the unit of length of the algorithm's state.
        select: "best" takes the candidate of the highest value, "softmax" one with probability ∝ exp(value /
            `selection_temperature`), "uniform" one at random: the flow by itself.
        selection_temperature: > 0, in the units of the value; for "softmax" only.
        random_directions: a control: each particle is moved as far as the flow would move it, but in a random direction (and
            projected on the box of actions, which can shorten the move).
        band: each state chooses its own L <= `steps`: it stops before the first step at which the mean value of the
            set does not rise, or the critics' disagreement (standard deviation over members, mean over the set) is more
            than `band` times the largest among the state's own proposals. None always takes all steps.
    """

    name: str
    candidates: int
    steps: int = 0
    step_size: float = 0.0
    select: Literal["best", "uniform", "softmax"] = "best"
    selection_temperature: float | None = None
    random_directions: bool = False
    band: float | None = None

    def __post_init__(self):
        """Refuse numbers that make no sense."""
        if self.candidates < 1 or self.steps < 0 or not 0 <= self.step_size < float("inf"):
            raise ValueError(f"{self.name}: needs candidates >= 1, steps >= 0 and a finite step_size >= 0.")
        if self.select not in _SELECTIONS:
            raise ValueError(f"{self.name}: select must be one of {_SELECTIONS}, got {self.select!r}.")
        given = self.selection_temperature
        if (given is not None) != (self.select == "softmax") or not (given is None or 0 < given < float("inf")):
            raise ValueError(f"{self.name}: selection_temperature must be > 0 with select='softmax', else left out.")
        if self.band is not None and (not self.band > 0 or self.steps < 1):
            raise ValueError(f"{self.name}: band must be > 0, with steps >= 1 to choose from.")


class Agent(eqx.Module):
    """What acting needs of a training run.

    Attributes:
        algorithm: what was trained.
        state: its networks.
        standardizer: constants of the observations.
        chunk: actions of the environment in one of the algorithm, as in `make_replay`.
    """

    algorithm: AbstractAlgorithm
    state: AbstractState
    standardizer: Standardizer
    chunk: int = eqx.field(static=True, default=1)


class Block(NamedTuple):
    """Lanes that share one program: the same number of candidates and of steps.

    Attributes:
        candidates: proposals a state.
        steps: L_test.
        adaptive: whether each state chooses its own steps.
        policies: indices of the policies that run here.
        lanes: indices of the lanes, contiguous.
    """

    candidates: int
    steps: int
    adaptive: bool
    policies: tuple[int, ...]
    lanes: tuple[int, ...]


class PolicyTable(eqx.Module):
    """Policies as arrays, and which lanes can run them.

    Lanes are divided into blocks by what their policies cost: a lane that only ranks proposals does not pay for the
    flow of another, nor for the candidates of best-of-4N.

    Attributes:
        step_size: (policies,).
        select: (policies,), the number of the selection among `Policy.select`'s.
        selection_temperature: (policies,), 1 where none is given.
        random_directions: (policies,), the control of random directions.
        band: (policies,), 1 where none is given.
        blocks: the division of the lanes.
    """

    step_size: Float[Array, " policies"]
    select: Int[Array, " policies"]
    selection_temperature: Float[Array, " policies"]
    random_directions: Bool[Array, " policies"]
    band: Float[Array, " policies"]
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
        self.select = jnp.asarray([_SELECTIONS.index(p.select) for p in policies], jnp.int32)
        self.selection_temperature = jnp.asarray([p.selection_temperature or 1.0 for p in policies], jnp.float32)
        self.random_directions = jnp.asarray([p.random_directions for p in policies])
        self.band = jnp.asarray([p.band or 1.0 for p in policies], jnp.float32)
        groups: dict[tuple[int, int, bool], list[int]] = {}
        for i, p in enumerate(policies):
            groups.setdefault((p.candidates, p.steps, p.band is not None), []).append(i)
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


class Decision(eqx.Module):
    """What was done in one state.

    Attributes:
        action: (act,), a chunk as one vector.
        displacement: distance of the action from the proposal it came from, root mean square over coordinates, in the
            budget's unit of length.
        value: its selection value.
        steps: L, the steps of the flow that were taken.
    """

    action: Float[Array, " act"]
    displacement: Float[Array, ""]
    value: Float[Array, ""]
    steps: Int[Array, ""]


@eqx.filter_jit
def act(
    agent: Agent,
    table: PolicyTable,
    policy: Int[Array, " lanes"],
    observations: Float[Array, "lanes obs"],
    episode: Int[Array, " lanes"],
    time: Int[Array, " lanes"],
    key: Key,
) -> Decision:
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

    def run(block: Block) -> Decision:
        def one(policy: Array, state: Array, episode: Array, time: Array) -> Decision:
            return _act(agent, table, block, policy, state, jr.fold_in(jr.fold_in(key, episode), time))

        lanes = slice(block.lanes[0], block.lanes[-1] + 1)
        return jax.vmap(one)(policy[lanes], states[lanes], episode[lanes], time[lanes])

    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *[run(block) for block in table.blocks])


def _act(agent: Agent, table: PolicyTable, block: Block, policy: Array, observation: Array, key: Key) -> Decision:
    proposal_key, direction_key, select_key = jr.split(key, 3)
    algorithm, state = agent.algorithm, agent.state
    # One key a candidate: best-of-4N ranks the proposals of best-of-N and more.
    keys = jax.vmap(lambda i: jr.fold_in(proposal_key, i))(jnp.arange(block.candidates))
    start = jax.vmap(lambda k: algorithm.propose(state, observation, k))(keys)

    ended, steps = start, jnp.zeros((), jnp.int32)
    if block.steps:
        path = algorithm.improve(state, observation, start, block.steps, table.step_size[policy]).trajectory
        assert path is not None
        steps = jnp.asarray(block.steps, jnp.int32)
        if block.adaptive:
            steps = _own_steps(agent, observation, path, table.band[policy])
        flowed = path[steps]
        control = _random_directions(start, flowed, state.scale, direction_key)
        ended = jnp.where(table.random_directions[policy], control, flowed)

    values = algorithm.selection(algorithm.values(state, observation, ended))
    temperature = table.selection_temperature[policy]
    chosen = (
        best_of_n(ended, values).index,
        uniform_select(ended, values, key=select_key).index,
        softmax_select(ended, values, temperature, key=select_key).index,
    )
    index = jnp.stack(chosen)[table.select[policy]]
    move = (ended[index] - start[index]) / state.scale
    return Decision(ended[index], jnp.sqrt(jnp.mean(move**2)), values[index], steps)


def _own_steps(agent: Agent, observation: Array, path: Float[Array, "saved n act"], band: Array) -> Int[Array, ""]:
    """Give the last step before the value stops rising, or the critics disagree more than on the proposals."""
    values = jax.vmap(lambda actions: agent.algorithm.values(agent.state, observation, actions))(path)
    mean = jnp.mean(jax.vmap(agent.algorithm.selection)(values), axis=1)
    disagreement = jnp.std(values, axis=1)
    known = jnp.mean(disagreement[1:], axis=1) <= band * jnp.max(disagreement[0])
    good = known & (mean[1:] > mean[:-1])
    return jnp.sum(jnp.cumprod(good.astype(jnp.int32)), dtype=jnp.int32)


def _random_directions(start: Array, flowed: Array, scale: Array, key: Key) -> Array:
    """Move each particle by the length of its own transport, in a direction uniform on the sphere."""
    length = jnp.linalg.norm((flowed - start) / scale[None], axis=1, keepdims=True)
    direction = jr.normal(key, start.shape, start.dtype)
    direction = direction / jnp.linalg.norm(direction, axis=1, keepdims=True)
    return jnp.clip(start + scale[None] * length * direction, -1, 1)
