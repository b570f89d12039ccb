"""How a trained agent acts: candidates are proposed, transported within a test budget, and one is selected.

All policies of one evaluation (budgets, controls, best-of-N) act in one compiled call, and on the same proposals in the
same episode at the same time.
"""

import dataclasses
from collections.abc import Hashable
from typing import Literal, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float, Int

from flowrl._budget import Budget
from flowrl._custom_types import Key
from flowrl._misc import check_fields, concrete
from flowrl._select import best_of_n, softmax_select, uniform_select
from flowrl.rl.data.replay import Standardizer
from flowrl.rl.learning import AbstractAlgorithm, AbstractState, AbstractValueBased

Selection = Literal["best", "uniform", "softmax"]
# A policy's number in a table, so that policies that select in different ways share one program.
_SELECTIONS = get_args(Selection)


@dataclasses.dataclass(frozen=True)
class Policy:
    """One way to act.

    Attributes:
        name: what tables call it.
        candidates: proposals that may be chosen from.
        budget: how far they are transported, in the algorithm's unit of length; None leaves them where they are. Its
            number of steps L is a Python int, and all that it says holds: temperature, caps, tolerance.
        select: "best" takes the candidate of the highest value, "softmax" one with probability ∝ exp(value /
            `selection_temperature`), "uniform" one at random: the flow by itself.
        selection_temperature: > 0, in the units of the value; for "softmax" only.
        random_directions: a control: each particle is moved as far as the flow would move it, but in a random
            direction (and projected on the box of actions, which can shorten the move).
        band: each state chooses its own number of steps, at most L: it stops before the first step at which the mean
            value of the set does not rise, or the critics' disagreement (standard deviation over members, mean over
            the set) is more than `band` times the largest among the state's own proposals. None always takes all steps.

    Raises:
        TypeError: the budget is no `Budget`, or its number of steps is an array.
        ValueError: a number is out of range, the step size is 0, or the budget has a scale.
    """

    name: str
    candidates: int
    budget: Budget | None = None
    _: dataclasses.KW_ONLY
    select: Selection = "best"
    selection_temperature: float | None = None
    random_directions: bool = False
    band: float | None = None

    def __post_init__(self):
        check_fields(self, counts=("candidates",), positive=("selection_temperature", "band"), name=self.name)
        if self.budget is not None:
            self._check_budget(self.budget)
        if self.select not in _SELECTIONS:
            raise ValueError(f"{self.name}: select must be one of {_SELECTIONS}, got {self.select!r}.")
        if (self.selection_temperature is not None) != (self.select == "softmax"):
            raise ValueError(f"{self.name}: selection_temperature must be > 0 with select='softmax', else left out.")
        if self.band is not None:
            if not self.steps:
                raise ValueError(f"{self.name}: band needs a budget of steps >= 1 to choose from.")
            if self.budget is not None and self.budget.check_every > 1:
                raise ValueError(f"{self.name}: band may stop after any step, so the budget needs check_every=1.")

    def _check_budget(self, budget: Budget) -> None:
        if not isinstance(budget, Budget):
            number = isinstance(budget, int | float)
            hint = f"; for {budget} steps it is Budget({budget}, step_size)" if number else ""
            raise TypeError(f"{self.name}: budget must be a flowrl.Budget or None, got {budget!r}{hint}.")
        if not isinstance(budget.steps, int):
            raise TypeError(f"{self.name}: the budget's steps must be a Python int: the path of all steps is kept.")
        if budget.scale is not None:
            raise ValueError(f"{self.name}: leave the budget's scale out; the algorithm states its own unit of length.")
        size = concrete(budget.step_size)
        if budget.steps and size is not None and not size.any():
            raise ValueError(f"{self.name}: a budget of {budget.steps} steps of size 0 moves nothing; leave it out.")

    @property
    def steps(self) -> int:
        """Number of steps L of the flow, 0 without a budget."""
        return 0 if self.budget is None else self.budget.bound

    def check(self, algorithm: AbstractAlgorithm) -> None:
        """Check that an algorithm can act in this way.

        Args:
            algorithm: what was trained.

        Raises:
            ValueError: the policy moves candidates, and the algorithm is not an `AbstractValueBased`.
        """
        if self.steps and not isinstance(algorithm, AbstractValueBased):
            raise ValueError(f"{self.name}: {_cannot_move(algorithm)}")


def _cannot_move(algorithm: AbstractAlgorithm) -> str:
    return f"{type(algorithm).__name__} has no values to move candidates along; leave the budget out."


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


class Block(eqx.Module):
    """Policies that share one program, and the lanes that run it.

    Attributes:
        candidates: proposals per state.
        budget: of all policies here, its leaves stacked; None if none of them moves its proposals.
        adaptive: whether each state chooses its own number of steps.
        policies: rows of the table that run here.
        lanes: indices of the lanes, contiguous.
    """

    candidates: int = eqx.field(static=True)
    budget: Budget | None
    adaptive: bool = eqx.field(static=True)
    policies: tuple[int, ...] = eqx.field(static=True)
    lanes: tuple[int, ...] = eqx.field(static=True)


class PolicyTable(eqx.Module):
    """Policies as arrays, and which lanes can run them.

    Lanes are divided into blocks by what their policies cost: a lane that only ranks proposals does not pay for the
    flow of another, nor for the candidates of best-of-4N. Policies whose budgets differ in numbers alone, not in steps
    or in what they bound, share a block.

    Attributes:
        place: (policies,), the row of each policy in its block's budget.
        select: (policies,), the number of the selection among `Policy.select`'s.
        selection_temperature: (policies,), 1 where none is given.
        random_directions: (policies,), the control of random directions.
        band: (policies,), 1 where none is given.
        blocks: the division of the lanes.
    """

    place: Int[Array, " policies"]
    select: Int[Array, " policies"]
    selection_temperature: Float[Array, " policies"]
    random_directions: Bool[Array, " policies"]
    band: Float[Array, " policies"]
    blocks: tuple[Block, ...]

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
        groups: dict[Hashable, list[int]] = {}
        for i, p in enumerate(policies):
            groups.setdefault(_program(p), []).append(i)
        if lanes < len(groups):
            raise ValueError(f"{len(groups)} lanes or more are needed for these policies, got {lanes}.")
        place = {i: row for members in groups.values() for row, i in enumerate(members)}
        self.place = jnp.asarray([place[i] for i in range(len(policies))], jnp.int32)
        self.select = jnp.asarray([_SELECTIONS.index(p.select) for p in policies], jnp.int32)
        self.selection_temperature = jnp.asarray([p.selection_temperature or 1.0 for p in policies], jnp.float32)
        self.random_directions = jnp.asarray([p.random_directions for p in policies])
        self.band = jnp.asarray([p.band or 1.0 for p in policies], jnp.float32)
        # Every block gets a lane, the rest go where most policies wait for one.
        counts = dict.fromkeys(groups, 1)
        for _ in range(lanes - len(groups)):
            counts[max(groups, key=lambda g: len(groups[g]) / counts[g])] += 1
        first, blocks = 0, []
        for group, members in groups.items():
            here = [policies[i] for i in members]
            lanes_here = tuple(range(first, first + counts[group]))
            adaptive = here[0].band is not None
            blocks.append(Block(here[0].candidates, _stacked(here), adaptive, tuple(members), lanes_here))
            first += counts[group]
        self.blocks = tuple(blocks)


def _program(policy: Policy) -> Hashable:
    """Tell apart policies that no single compiled program can run."""
    budget = policy.budget if policy.steps else None
    shapes = tuple(leaf.shape for leaf in jax.tree.leaves(budget))
    return policy.candidates, policy.band is not None, jax.tree.structure(budget), shapes


def _stacked(policies: list[Policy]) -> Budget | None:
    budgets = [p.budget for p in policies if p.steps]
    if not budgets:
        return None
    return jax.tree.map(lambda *leaves: jnp.stack(leaves).astype(jnp.float32), *budgets)


class Decision(eqx.Module):
    """What was done in one state.

    Attributes:
        action: (act,), a chunk as one vector.
        displacement: distance of the action from the proposal it came from, root mean square over coordinates, in the
            budget's unit of length.
        value: its selection value; 0 where the algorithm has no values.
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
    """Act in many states at once, each by its own policy. Compiled once per shape of a table.

    Args:
        agent: networks and constants.
        table: the policies.
        policy: row of the table for each lane, of the policies that the lane's block holds.
        observations: raw observations.
        episode: index of the episode in each lane; with `time` it determines the randomness, whatever the policy.
        time: steps taken in that episode.
        key: randomness of the evaluation.

    Returns:
        Actions with their displacements and values, leaves (lanes, ...).

    Raises:
        ValueError: a policy has a budget, and the algorithm is not an `AbstractValueBased`.
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
    # One key per candidate: best-of-4N ranks the proposals of best-of-N and more.
    keys = jax.vmap(lambda i: jr.fold_in(proposal_key, i))(jnp.arange(block.candidates))
    start = jax.vmap(lambda k: algorithm.propose(state, observation, k))(keys)

    ended, steps = start, jnp.zeros((), jnp.int32)
    if isinstance(algorithm, AbstractValueBased):
        unit = unit_of_length(algorithm, state, start)
        if block.budget is not None:
            budget = jax.tree.map(lambda leaf: leaf[table.place[policy]], block.budget)
            path = algorithm.improve(state, observation, start, budget).trajectory  # the test budget is spent here
            assert path is not None
            steps = jnp.asarray(budget.bound, jnp.int32)
            if block.adaptive:
                steps = _own_steps(algorithm, state, observation, path, table.band[policy])
            flowed = path[steps]
            control = _random_directions(start, flowed, unit, direction_key)
            ended = jnp.where(table.random_directions[policy], control, flowed)
        values = algorithm.selection(algorithm.values(state, observation, ended))
    elif block.budget is None:
        unit, values = jnp.ones(start.shape[1:], start.dtype), jnp.zeros(start.shape[0], start.dtype)
    else:
        raise ValueError(f"policies {block.policies} of the table: {_cannot_move(algorithm)}")

    temperature = table.selection_temperature[policy]
    chosen = (
        best_of_n(ended, values).index,
        uniform_select(ended, values, key=select_key).index,
        softmax_select(ended, values, temperature, key=select_key).index,
    )
    index = jnp.stack(chosen)[table.select[policy]]
    move = (ended[index] - start[index]) / unit
    return Decision(ended[index], jnp.sqrt(jnp.mean(move**2)), values[index], steps)


def unit_of_length(
    algorithm: AbstractValueBased, state: AbstractState, particles: Float[Array, "n act"]
) -> Float[Array, " act"]:
    """Return the algorithm's unit of length, one number per coordinate."""
    return jnp.broadcast_to(algorithm.unit(state), particles.shape[1:])


def _own_steps(
    algorithm: AbstractValueBased,
    state: AbstractState,
    observation: Array,
    path: Float[Array, "saved n act"],
    band: Array,
) -> Int[Array, ""]:
    """Return the last step before the value stops rising, or the critics disagree more than on the proposals."""
    values = jax.vmap(lambda actions: algorithm.values(state, observation, actions))(path)
    mean = jnp.mean(jax.vmap(algorithm.selection)(values), axis=1)
    disagreement = jnp.std(values, axis=1)
    known = jnp.mean(disagreement[1:], axis=1) <= band * jnp.max(disagreement[0])
    good = known & (mean[1:] > mean[:-1])
    return jnp.sum(jnp.cumprod(good.astype(jnp.int32)), dtype=jnp.int32)


def _random_directions(start: Array, flowed: Array, unit: Array, key: Key) -> Array:
    """Move each particle by the length of its own transport, in a direction uniform on the sphere."""
    length = jnp.linalg.norm((flowed - start) / unit[None], axis=1, keepdims=True)
    direction = jr.normal(key, start.shape, start.dtype)
    direction = direction / jnp.linalg.norm(direction, axis=1, keepdims=True)
    return jnp.clip(start + unit[None] * length * direction, -1, 1)
