"""How a trained agent acts: candidates are proposed, transported within a test budget, and one is selected.

All policies of one evaluation (budgets, controls, best-of-N) act in one compiled call, and on the same proposals in the
same episode at the same time.
"""

import dataclasses
from collections.abc import Hashable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, ArrayLike, Float, Int

from flowrl._budget import Budget
from flowrl._custom_types import Key
from flowrl._misc import check_count, check_kind, check_one_key
from flowrl.rl.acting._choices import Barycentre, Best
from flowrl.rl.acting._moves import Improve
from flowrl.rl.acting._stage import AbstractStage, Candidates, Situation
from flowrl.rl.data.replay import Standardizer
from flowrl.rl.learning import VGF, AbstractAlgorithm, AbstractGenerative, AbstractState, AbstractValueBased


@dataclasses.dataclass(frozen=True)
class Policy:
    """One way to act: so many proposals, and what is done to them in turn until one is left.

    `Policy("best-of-8", 8)` takes the proposal of the highest value, `Policy("VGF", 8, Budget(1, 0.3))` transports all
    of them first, and `Policy("shrink, then push", 32, (Barycentre(0.5), Budget(1, 0.1)))` moves the one that a
    consensus in the reference's noise has left.

    Attributes:
        name: what tables call it.
        candidates: proposals N.
        stages: what is done to them, one stage or several; a `Budget` stands for `Improve(budget)`. Where more than one
            candidate is left at the end, it is `Best` that chooses.

    Raises:
        TypeError: something else than stages and budgets, or a budget whose number of steps is an array.
        ValueError: a number is out of range, a step size is 0, a budget has a scale, or a stage cannot follow another.
    """

    name: str
    candidates: int
    stages: tuple[AbstractStage, ...] = ()

    def __init__(self, name: str, candidates: int, stages: Any = ()):
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "candidates", candidates)
        check_kind("name", name, str)
        check_count(f"{name}: candidates", candidates)
        given = stages if isinstance(stages, tuple | list) else () if stages is None else (stages,)
        made = tuple(self._stage(stage) for stage in given)
        object.__setattr__(self, "stages", tuple(s for s in made if not isinstance(s, Improve) or s.steps))
        count, in_noise = candidates, True
        for stage in self.stages:
            if "noise" in stage.needs and not in_noise:
                raise ValueError(
                    f"{name}: {_word(stage)} works in the noise of the proposals, which nothing finds again once they "
                    "were moved as actions; put it first."
                )
            if stage.least > count:
                raise ValueError(f"{name}: {_word(stage)} needs {stage.least} candidates, and {count} are there.")
            count, in_noise = 1 if stage.leaves_one else count, in_noise and stage.keeps_noise
        if count > 1:
            object.__setattr__(self, "stages", (*self.stages, Best()))

    def _stage(self, stage: Any) -> AbstractStage:
        if isinstance(stage, AbstractStage):
            return stage
        if not isinstance(stage, Budget):
            words = {"best": "Best()", "uniform": "Uniform()", "softmax": "Softmax(temperature)"}
            number = isinstance(stage, int | float)
            meant = (
                f"Budget({stage}, step_size)" if number else words.get(str(stage), "Budget(steps, step_size) or Best()")
            )
            raise TypeError(f"{self.name}: a stage is a value such as {meant}, got {stage!r}.")
        try:
            return Improve(stage)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{self.name}: {error}") from error

    @property
    def steps(self) -> int:
        """Steps L of all flows, 0 without any."""
        return sum(stage.steps for stage in self.stages)

    def check(self, algorithm: AbstractAlgorithm) -> None:
        """Check that an algorithm can act in this way.

        Args:
            algorithm: what was trained.

        Raises:
            ValueError: a stage needs values, or noise of the proposals, and the algorithm has none.
        """
        _check_stages(self.name, self.stages, algorithm)


def default_policy(algorithm: AbstractAlgorithm) -> Policy:
    """Return how an agent acts where nothing else is said.

    Of VGF 32 candidates shrink to their consensus in the reference's noise, which then takes one step along the
    critic, of a tenth of the reference's spread; of any other algorithm the best of 8 proposals is taken.

    Args:
        algorithm: what was trained.
    """
    if isinstance(algorithm, VGF) and algorithm.relative:
        push = Improve(algorithm.train_budget.with_steps(1, 0.1))
        return Policy("consensus 0.5 of 32, VGF L=1 of 0.1", 32, (Barycentre(0.5), push))
    return Policy("best-of-8", 8)


def _check_stages(name: str, stages: tuple[AbstractStage, ...], algorithm: AbstractAlgorithm) -> None:
    for stage in stages:
        if "values" in stage.needs and not isinstance(algorithm, AbstractValueBased):
            raise ValueError(
                f"{name}: {type(algorithm).__name__} has no values to move or weigh candidates by; leave "
                f"{_word(stage)} out."
            )
        if "noise" in stage.needs and not isinstance(algorithm, AbstractGenerative):
            raise ValueError(
                f"{name}: {_word(stage)} works in the noise of the proposals, and {type(algorithm).__name__} makes its "
                "own without any; act on Actions() as its space, or train an algorithm that samples."
            )


def _word(stage: AbstractStage) -> str:
    return "the budget" if isinstance(stage, Improve) else type(stage).__name__


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

    def __check_init__(self):
        check_kind("algorithm", self.algorithm, AbstractAlgorithm, "such as presets.default()")
        check_kind("state", self.state, AbstractState, "fit returns one")
        check_kind("standardizer", self.standardizer, Standardizer, "that of the training data")
        check_count("chunk", self.chunk)

    def __call__(
        self, observation: ArrayLike, *, key: Key, policy: Policy | None = None
    ) -> Float[Array, " act"] | Float[Array, "chunk act"]:
        """Act once.

        Args:
            observation: (obs,), as the environment gives it.
            key: randomness of the candidates.
            policy: how; None is `default_policy`. In many states side by side it is `act`.

        Returns:
            The action (act,); of an agent that acts in chunks all of them, (chunk, act).

        Raises:
            TypeError: an argument is of another kind.
            ValueError: the observation has another size, or the algorithm cannot act in this way.
        """
        check_one_key(key)
        if policy is not None:
            check_kind("policy", policy, Policy, 'such as Policy("best-of-8", 8)')
        try:
            given = jnp.asarray(observation, self.standardizer.mean.dtype)
        except (TypeError, ValueError) as error:
            raise TypeError(f"observation must be numbers (obs,), got {observation!r}.") from error
        if given.shape != self.standardizer.mean.shape:
            raise ValueError(
                f"observations of this agent have shape {self.standardizer.mean.shape}, got {given.shape}."
            )
        policy = default_policy(self.algorithm) if policy is None else policy
        policy.check(self.algorithm)
        zero = jnp.zeros(1, jnp.int32)
        action = act(self, PolicyTable((policy,), 1), zero, given[None], zero, zero, key).action[0]
        return action if self.chunk == 1 else action.reshape(self.chunk, -1)


class Block(eqx.Module):
    """Policies that share one program, and the lanes that run it.

    Attributes:
        candidates: proposals per state.
        stages: of all policies here, their leaves stacked.
        policies: rows of the table that run here.
        lanes: indices of the lanes, contiguous.
    """

    candidates: int = eqx.field(static=True)
    stages: tuple[AbstractStage, ...]
    policies: tuple[int, ...] = eqx.field(static=True)
    lanes: tuple[int, ...] = eqx.field(static=True)


class PolicyTable(eqx.Module):
    """Policies as arrays, and which lanes can run them.

    Lanes are divided into blocks by what their policies cost: a lane that only ranks proposals does not pay for the
    flow of another, nor for the candidates of best-of-4N. Policies whose stages differ in numbers alone, not in steps
    or in what a budget bounds, share a block.

    Attributes:
        place: (policies,), the row of each policy among the stages of its block.
        blocks: the division of the lanes.
    """

    place: Int[Array, " policies"]
    blocks: tuple[Block, ...]

    def __init__(self, policies: tuple[Policy, ...], lanes: int):
        """Tabulate policies.

        Args:
            policies: at least one, with different names.
            lanes: lanes to divide, in proportion to the number of policies of each cost.

        Raises:
            TypeError: `policies` are something else.
            ValueError: no policies, equal names, or fewer lanes than blocks.
        """
        check_kind("policies", policies, tuple, "give several as (Policy(...), Policy(...))")
        for each in policies:
            check_kind("each policy", each, Policy, 'such as Policy("best-of-8", 8)')
        check_count("lanes", lanes)
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
        # Every block gets a lane, the rest go where most policies wait for one.
        counts = dict.fromkeys(groups, 1)
        for _ in range(lanes - len(groups)):
            counts[max(groups, key=lambda g: len(groups[g]) / counts[g])] += 1
        first, blocks = 0, []
        for group, members in groups.items():
            here, others = eqx.partition([policies[i].stages for i in members], eqx.is_array)
            stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves).astype(jnp.float32), *here)
            stages = eqx.combine(stacked, others[0])
            lanes_here = tuple(range(first, first + counts[group]))
            blocks.append(Block(policies[members[0]].candidates, stages, tuple(members), lanes_here))
            first += counts[group]
        self.blocks = tuple(blocks)


def _program(policy: Policy) -> Hashable:
    """Tell apart policies that no single compiled program can run."""
    numbers, others = eqx.partition(policy.stages, eqx.is_array)
    shapes = tuple(leaf.shape for leaf in jax.tree.leaves(numbers))
    return policy.candidates, jax.tree.structure(numbers), shapes, tuple(jax.tree.leaves(others))


class Decision(eqx.Module):
    """What was done in one state.

    Attributes:
        action: (act,), a chunk as one vector.
        displacement: distance of the action from the proposal it came from (of one made of many, from the nearest),
            root mean square over coordinates, in the algorithm's unit of length.
        value: its selection value; 0 where the algorithm has no values.
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
        ValueError: the algorithm lacks what a stage needs, as `Policy.check` says.
    """
    states = agent.standardizer(observations)

    def run(block: Block) -> Decision:
        _check_stages(f"policies {block.policies} of the table", block.stages, agent.algorithm)

        def one(policy: Array, state: Array, episode: Array, time: Array) -> Decision:
            return _act(agent, table, block, policy, state, jr.fold_in(jr.fold_in(key, episode), time))

        lanes = slice(block.lanes[0], block.lanes[-1] + 1)
        return jax.vmap(one)(policy[lanes], states[lanes], episode[lanes], time[lanes])

    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *[run(block) for block in table.blocks])


def run_stages(situation: Situation, count: int, stages: tuple[AbstractStage, ...], key: Key) -> Candidates:
    """Propose candidates and take them through the stages of a policy."""
    proposal_key, stage_key = jr.split(key)
    candidates = situation.propose(count, proposal_key)
    for number, stage in enumerate(stages):  # the test budget is spent here
        candidates = stage(situation, candidates, jr.fold_in(stage_key, number))
    return candidates


def _act(agent: Agent, table: PolicyTable, block: Block, policy: Array, observation: Array, key: Key) -> Decision:
    situation = Situation(agent.algorithm, agent.state, observation)
    numbers, others = eqx.partition(block.stages, eqx.is_array)
    stages = eqx.combine(jax.tree.map(lambda leaf: leaf[table.place[policy]], numbers), others)
    candidates = run_stages(situation, block.candidates, stages, key)
    action = candidates.actions[0]
    move = (action - candidates.origins[0]) / situation.unit(action.shape[0])
    return Decision(action, jnp.sqrt(jnp.mean(move**2)), situation.values(candidates.actions)[0])
