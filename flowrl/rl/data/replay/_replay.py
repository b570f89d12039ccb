"""Offline data on the device, ready for n-step targets."""

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, Int

from flowrl._custom_types import Key
from flowrl.rl.data import OBSERVATION_PROTOCOLS, Transitions, episode_ends


class Standardizer(eqx.Module):
    """Observations brought to mean 0 and standard deviation 1, with constants of the training data.

    Attributes:
        mean: (obs,).
        std: (obs,), at least 1e-3.
    """

    mean: Float[Array, " obs"]
    std: Float[Array, " obs"]

    @classmethod
    def fit(cls, observations: Float[np.ndarray | Array, "rows obs"], protocol: str = "standard") -> "Standardizer":
        """Measure the constants.

        Args:
            observations: (rows, obs).
            protocol: one of `flowrl.rl.data.OBSERVATION_PROTOCOLS`; "none" leaves observations as they are.

        Raises:
            ValueError: the protocol is unknown.
        """
        if protocol not in OBSERVATION_PROTOCOLS:
            known = ", ".join(OBSERVATION_PROTOCOLS)
            raise ValueError(f"unknown observation protocol {protocol!r}, expected one of {known}.")
        if protocol == "none":
            width = observations.shape[1]
            return cls(jnp.zeros(width, jnp.float32), jnp.ones(width, jnp.float32))
        rows = np.asarray(observations, np.float64)
        mean, std = rows.mean(axis=0), rows.std(axis=0)
        return cls(jnp.asarray(mean, jnp.float32), jnp.asarray(np.maximum(std, 1e-3), jnp.float32))

    def __call__(self, observations: Float[Array, "*batch obs"]) -> Float[Array, "*batch obs"]:
        """Standardise.

        Args:
            observations: raw observations.
        """
        return (observations - jnp.broadcast_to(self.mean, observations.shape)) / jnp.broadcast_to(
            self.std, observations.shape
        )


class Replay(eqx.Module):
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
        particles: reference samples at every row's next state, (rows, M, act), or None while they are drawn afresh.
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
        return jr.randint(key, (size,), 0, self.actions.shape[0])


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
        ValueError: `discount`, `n_step`, `chunk` or `reward_scale` is out of range, or no trajectory has `chunk` steps.

    ??? cite "Source"
        Li, Zhou and Levine, *Reinforcement Learning with Action Chunking*, 2025 (arXiv 2507.07969), for chunks.
    """
    if not 0 <= discount <= 1:
        raise ValueError(f"discount must be in [0, 1], got {discount}.")
    if n_step < 1:
        raise ValueError(f"n_step must be >= 1, got {n_step}.")
    if not 0 < reward_scale < float("inf"):
        raise ValueError(f"reward_scale must be finite and > 0, got {reward_scale}.")
    if chunk < 1 or (chunk > 1 and n_step not in (1, chunk)):
        raise ValueError(f"chunk must be >= 1, and n_step left out with it, got chunk={chunk} and n_step={n_step}.")
    n_step = max(n_step, chunk)
    rewards = np.asarray(data.rewards, np.float64) * reward_scale
    rows = rewards.shape[0]
    stops = (np.asarray(data.terminals) > 0) | (np.asarray(data.masks) == 0)
    returns = np.zeros(rows)
    discounts = np.ones(rows)
    bootstrap = np.arange(rows)
    running = np.ones(rows, bool)
    for i in range(n_step):
        at = np.minimum(np.arange(rows) + i, rows - 1)
        returns += np.where(running, discounts * rewards[at], 0)
        bootstrap = np.where(running, at, bootstrap)
        discounts = np.where(running, discounts * discount, discounts)
        running &= ~stops[at] & (np.arange(rows) + i + 1 < rows)
    discounts *= np.asarray(data.masks)[bootstrap]
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
