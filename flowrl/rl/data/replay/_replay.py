"""Offline data on the device, ready for n-step targets, and the batches that updates read."""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, Int

from flowrl._custom_types import Key
from flowrl._misc import check_count, check_kind, check_number
from flowrl.rl.data.replay._n_step import n_step_rows
from flowrl.rl.data.replay._standardizer import Standardizer
from flowrl.rl.data.schema import Transitions, episode_ends


class AbstractBatchSource(abc.ABC):
    """Where training takes its batches from."""

    @abc.abstractmethod
    def batches(self, size: int, updates: int, key: Key) -> "Batches":
        """Draw the batches of the next updates.

        Args:
            size: rows per batch, >= 1.
            updates: number of batches.
            key: that of the state before these updates.
        """


@eqx.filter_jit
def draw_batches(draw: eqx.Partial, updates: int, key: Key) -> Int[Array, "updates batch"]:
    """Draw the rows of every batch by the keys that the updates will split off."""

    def one(key: Key, _: None) -> tuple[Key, Array]:
        key, batch_key, _ = jr.split(key, 3)  # as `train` does
        return key, draw(batch_key)

    return jax.lax.scan(one, key, None, length=updates)[1]


def draw_uniformly(rows: int | Int[Array, ""], size: int, key: Key) -> Int[Array, " size"]:
    """Draw some of the first `rows` rows, all alike, with replacement."""
    return jr.randint(key, (size,), 0, rows)


class Replay(eqx.Module, AbstractBatchSource):
    """A fixed set of n-step transitions on the device.

    Attributes:
        observations: s_t, standardised, (rows, obs).
        actions: a_t, or the chunk a_t, ..., a_{t+h−1} as one vector, (rows, act).
        returns: Σ_{i<m} γ^i r_{t+i}, (rows,).
        next_observations: s_{t+1}, standardised, (rows, obs); the bootstrap state of row t is that of row `bootstrap`.
        bootstrap: row t + m − 1, (rows,).
        following: the row whose action the data took in the bootstrap state, (rows,); −1 where the trajectory ends
            before it, or has too few steps left for a chunk.
        discounts: γ^m times the mask (0 where the task ended), (rows,).
        particles: reference samples at every row's next state, (rows, M, act); None where updates draw their own.
    """

    observations: Float[Array, "rows obs"]
    actions: Float[Array, "rows act"]
    returns: Float[Array, " rows"]
    next_observations: Float[Array, "rows obs"]
    bootstrap: Int[Array, " rows"]
    following: Int[Array, " rows"]
    discounts: Float[Array, " rows"]
    particles: Float[Array, "rows samples act"] | None = None

    def draw(self, size: int, key: Key) -> Int[Array, " size"]:
        """Draw the rows of a batch, all alike, with replacement.

        Args:
            size: rows, >= 1.
            key: randomness.
        """
        return draw_uniformly(self.actions.shape[0], size, key)

    def batches(self, size: int, updates: int, key: Key) -> "Batches":
        return Batches(self, draw_batches(eqx.Partial(draw_uniformly, self.actions.shape[0], size), updates, key))


class Batches(eqx.Module):
    """The batches of some updates, on the device.

    Attributes:
        replay: the rows that occur in them, and those that follow these.
        rows: of each batch, (updates, batch).
    """

    replay: Replay
    rows: Int[Array, "updates batch"]


def make_replay(
    data: Transitions,
    standardizer: Standardizer,
    *,
    discount: float,
    n_step: int = 1,
    chunk: int = 1,
    reward_scale: float = 1.0,
) -> Replay:
    """Put transitions on the device with their n-step returns.

    The sum stops at the end of a trajectory (bootstrapping from its last next state) and at the end of the task (no
    bootstrapping): m = min(n, steps left).

    With chunks of h > 1 actions, an action of the learner is h actions of the environment, taken one after the other
    whatever happens, and n is h. States with fewer than h steps left in their trajectory are left out.

    Args:
        data: transitions; `masks` end the task, `terminals` end the trajectory.
        standardizer: applied to both kinds of observations.
        discount: γ in [0, 1].
        n_step: n >= 1; with chunks leave it out.
        chunk: h >= 1, actions taken at once.
        reward_scale: factor on every reward, > 0.

    Returns:
        The `Replay`, without cached particles.

    Raises:
        TypeError: `data` or `standardizer` is something else.
        ValueError: `discount`, `n_step`, `chunk` or `reward_scale` is out of range, or no trajectory has `chunk` steps.

    ??? cite "Source"
        Li, Zhou and Levine, *Reinforcement Learning with Action Chunking*, 2025 (arXiv 2507.07969), for chunks.
    """
    check_kind("data", data, Transitions, "a split of a data set is one, dataset.train or dataset.validation")
    check_kind("standardizer", standardizer, Standardizer, "Standardizer.fit(data.observations) makes one")
    check_number("discount", discount, lambda x: 0 <= x <= 1, "in [0, 1]")
    check_count("n_step", n_step)
    check_number("reward_scale", reward_scale, lambda x: 0 < x < float("inf"), "finite and > 0")
    check_count("chunk", chunk)
    if chunk > 1 and n_step not in (1, chunk):
        raise ValueError(f"n_step must be left out with chunks, got chunk={chunk} and n_step={n_step}.")
    n_step = max(n_step, chunk)
    rewards = np.asarray(data.rewards, np.float64) * reward_scale
    rows = rewards.shape[0]
    returns, discounts, bootstrap = n_step_rows(
        rewards, np.asarray(data.masks), np.asarray(data.terminals) > 0, discount, n_step
    )
    following = np.where(bootstrap < episode_ends(data.terminals)[bootstrap], bootstrap + 1, -1)
    observations, actions, next_observations = (
        np.asarray(x, np.float32) for x in (data.observations, data.actions, data.next_observations)
    )
    if chunk > 1:
        whole = np.flatnonzero(episode_ends(data.terminals) - np.arange(rows) + 1 >= chunk)
        if not whole.size:
            raise ValueError(f"no trajectory has {chunk} steps, the length of a chunk; the longest has fewer.")
        actions = np.concatenate([actions[whole + i] for i in range(chunk)], axis=1)
        observations, next_observations = observations[whole], next_observations[bootstrap[whole]]
        returns, discounts, bootstrap = returns[whole], discounts[whole], np.arange(whole.size)
        place = np.full(rows + 1, -1)  # the last entry answers for "no row"
        place[whole] = np.arange(whole.size)
        following = place[following[whole]]
    return Replay(
        observations=standardizer(jnp.asarray(observations)),
        actions=jnp.asarray(actions),
        returns=jnp.asarray(returns, jnp.float32),
        next_observations=standardizer(jnp.asarray(next_observations)),
        bootstrap=jnp.asarray(bootstrap, jnp.int32),
        following=jnp.asarray(following, jnp.int32),
        discounts=jnp.asarray(discounts, jnp.float32),
    )
