"""How far critics agree where an agent acts: on the ranking of its candidates, on the gradient, on what is gained."""

import dataclasses
import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from flowrl._custom_types import Key
from flowrl.rl.acting._choices import spread_of
from flowrl.rl.acting._policy import Agent, Policy, run_stages
from flowrl.rl.acting._stage import Situation
from flowrl.rl.data.replay import Replay
from flowrl.rl.learning import AbstractValueBased

# Bounds the memory, as in `measure_budgets`.
_STATES_AT_ONCE = 256


@dataclasses.dataclass(frozen=True)
class CriticAgreement:
    """What critics say of the candidates of the first agent, averaged over states.

    Ranks are Spearman's correlation over the candidates of a state, cosines those of gradients with respect to the
    action, averaged over candidates. Pairs are all pairs of members, or of agents; NaN where there is no pair.

    Attributes:
        member_rank: rank correlation of two members of the first agent's ensemble.
        member_cosine: cosine of their gradients.
        agent_rank: rank correlation of the selection values of two agents.
        agent_cosine: cosine of their gradients.
        gain: value of the policy's action less the mean of the candidates', by the agent's own critic, in standard
            deviations of the candidates' values.
        gain_elsewhere: the same action scored by the other agents' critics, each in its own unit.
    """

    member_rank: float
    member_cosine: float
    agent_rank: float
    agent_cosine: float
    gain: float
    gain_elsewhere: float


def compare_critics(
    agents: tuple[Agent, ...],
    policy: Policy,
    replay: Replay,
    *,
    candidates: int = 8,
    states: int = 1024,
    key: Key,
) -> CriticAgreement:
    """Compare the critics of agents that differ in their training seed, at states of a data set.

    An error that members share, or seeds, is seen by none of these numbers: agreement is no proof.

    Args:
        agents: at least one, with one algorithm and one standardisation; the first proposes and acts.
        policy: how it acts.
        replay: transitions, best held out.
        candidates: proposals per state, >= 2.
        states: states to average over; at most as many as there are.
        key: randomness of the rows, the proposals and the policy.

    Raises:
        ValueError: no agents, too few candidates, or agents without values.
    """
    if not agents or candidates < 2 or states < 1:
        raise ValueError(f"give agents ({len(agents)}), candidates >= 2 ({candidates}) and states >= 1 ({states}).")
    for agent in agents:
        policy.check(agent.algorithm)
        if not isinstance(agent.algorithm, AbstractValueBased):
            raise ValueError(f"{type(agent.algorithm).__name__} has no values to compare.")
    rows = jr.choice(
        jr.fold_in(key, 0), replay.actions.shape[0], (min(states, replay.actions.shape[0]),), replace=False
    )
    found = jax.device_get(
        _compare(agents, policy.candidates, policy.stages, replay.observations[rows], candidates, key)
    )
    return CriticAgreement(*(float(x) for x in found))


@eqx.filter_jit
def _compare(agents, candidates_of_policy, stages, observations, candidates, key) -> tuple[Array, ...]:
    proposal_key, policy_key = jr.split(jr.fold_in(key, 1))

    def one(arguments: tuple[Array, Array]) -> tuple[Array, ...]:
        observation, number = arguments
        at = [Situation(agent.algorithm, agent.state, observation) for agent in agents]
        drawn = at[0].propose(candidates, jr.fold_in(proposal_key, number))
        chosen = run_stages(at[0], candidates_of_policy, stages, jr.fold_in(policy_key, number)).actions

        def members(action: Array) -> Float[Array, " members"]:
            first = agents[0].algorithm
            assert isinstance(first, AbstractValueBased)
            return first.values(agents[0].state, observation, action[None])[:, 0]

        def selections(action: Array) -> Float[Array, " agents"]:
            return jnp.stack([situation.values(action[None])[0] for situation in at])

        ranks, cosines = [], []
        for value in (members, selections):
            ranks.append(_pairs(_correlation, _ranked(jax.vmap(value)(drawn.actions).T)))
            slopes = jax.vmap(jax.jacrev(value))(drawn.actions)  # (candidates, values, act)
            cosines.append(jnp.mean(jax.vmap(lambda g: _pairs(_cosine, g))(slopes)))
        gains = []
        for situation in at:
            values = situation.values(drawn.actions)
            gains.append((situation.values(chosen)[0] - jnp.mean(values)) / spread_of(values))
        elsewhere = jnp.mean(jnp.stack(gains[1:])) if gains[1:] else jnp.asarray(jnp.nan, observation.dtype)
        return ranks[0], cosines[0], ranks[1], cosines[1], gains[0], elsewhere

    numbers = jnp.arange(observations.shape[0])
    found = jax.lax.map(one, (observations, numbers), batch_size=_STATES_AT_ONCE)
    return tuple(jnp.mean(x) for x in found)


def _pairs(measure, rows: Float[Array, "rows n"]) -> Float[Array, ""]:
    """Average a measure of two vectors over all pairs of rows; NaN for one row."""
    pairs = list(itertools.combinations(range(rows.shape[0]), 2))
    if not pairs:
        return jnp.asarray(jnp.nan, rows.dtype)
    return jnp.mean(jnp.stack([measure(rows[i], rows[j]) for i, j in pairs]))


def _ranked(values: Float[Array, "rows n"]) -> Float[Array, "rows n"]:
    return jnp.argsort(jnp.argsort(values, axis=1), axis=1).astype(values.dtype)


def _correlation(x: Array, y: Array) -> Array:
    return _cosine(x - jnp.mean(x), y - jnp.mean(y))


def _cosine(x: Array, y: Array) -> Array:
    length = jnp.linalg.norm(x) * jnp.linalg.norm(y)
    return jnp.dot(x, y) / jnp.maximum(length, jnp.finfo(x.dtype).tiny)
