"""Many updates in one compiled call, for any algorithm."""

from collections.abc import Callable
from typing import Generic, Literal, TypeVar, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jaxtyping import Array, Float, Int

from flowrl._custom_types import Key
from flowrl.rl.data.replay import AbstractBatchSource, Batches, Replay
from flowrl.rl.learning._algorithm import AbstractAlgorithm, AbstractPretrained, S

Phase = Literal["reference", "main"]
_Update = Callable[[S, Replay, Array, Key], tuple[S, dict[str, Array]]]
N = TypeVar("N", bound=eqx.Module)


class Trainable(eqx.Module, Generic[N]):
    """A network with the state of its optimiser.

    Attributes:
        network: the network.
        optimiser: Adam's state.
    """

    network: N
    optimiser: optax.OptState

    @classmethod
    def start(cls, network: N, optimiser: optax.GradientTransformation) -> "Trainable[N]":
        """Pair a network with the optimiser's state before its first step.

        Args:
            network: the network.
            optimiser: from optax.
        """
        return cls(network, optimiser.init(eqx.filter(network, eqx.is_array)))

    def updated(self, gradient: N, optimiser: optax.GradientTransformation) -> "Trainable[N]":
        """Return the pair after one step of the optimiser.

        Args:
            gradient: of the loss, the structure of the network.
            optimiser: the one given to `start`.
        """
        # Adam raises a float to an int32 power, which strict promotion refuses.
        with jax.numpy_dtype_promotion("standard"):
            updates, state = optimiser.update(cast(optax.Updates, gradient), self.optimiser)
        return Trainable(eqx.apply_updates(self.network, updates), state)


def copied(network: N) -> N:
    """Copy a network: donated buffers must not be shared between two fields of a state."""
    return jax.tree.map(lambda x: jnp.array(x) if eqx.is_array(x) else x, network)


def polyak(slow: N, new: N, rate: float) -> N:
    """Move a target network toward the one it follows, at rate τ."""
    return jax.tree.map(lambda s, n: s + rate * (n - s) if eqx.is_array(s) else s, slow, new)


def train(
    algorithm: AbstractAlgorithm[S],
    state: S,
    source: AbstractBatchSource,
    updates: int,
    phase: Phase = "main",
) -> tuple[S, dict[str, Float[Array, ""]]]:
    """Train for some updates in one compiled call.

    Args:
        algorithm: the algorithm.
        state: the current state; its buffers are given away.
        source: the data, as `prepare` of the algorithm left them: a `Replay`, or a buffer that holds them.
        updates: number of updates; each number compiles its own program.
        phase: "reference" for the updates of an `AbstractPretrained` before the main ones.

    Returns:
        The next state, and mean metrics over the interval.
    """
    return _interval((algorithm, source.batches(algorithm.batch_size, updates, state.key), phase), state)


@eqx.filter_jit
def held_out(
    algorithm: AbstractAlgorithm[S], state: S, replay: Replay, key: Key, batches: int = 8, phase: Phase = "main"
) -> dict[str, Array]:
    """Measure an algorithm's metrics on data that it is not trained on: the update is computed and thrown away.

    Args:
        algorithm: the algorithm.
        state: the current state.
        replay: held-out data, prepared as the training data are.
        key: randomness.
        batches: batches to average over.
        phase: "reference" for the metrics of an `AbstractPretrained`'s reference.
    """
    update = _update(algorithm, phase)

    def one(key: Key) -> dict[str, Array]:
        rows_key, update_key = jr.split(key)
        return update(state, replay, replay.draw(algorithm.batch_size, rows_key), update_key)[1]

    return jax.tree.map(jnp.mean, jax.lax.map(one, jr.split(key, batches)))


@eqx.filter_jit(donate="all-except-first")
def _interval(constant: tuple[AbstractAlgorithm[S], Batches, Phase], state: S) -> tuple[S, dict[str, Array]]:
    algorithm, batches, phase = constant
    update = _update(algorithm, phase)
    dynamic, static = eqx.partition(state, eqx.is_array)

    def body(dynamic: S, rows: Int[Array, " batch"]) -> tuple[S, dict[str, Array]]:
        state = eqx.combine(dynamic, static)
        # The second key drew these rows: see `draw_batches`.
        key, _, update_key = jr.split(state.key, 3)
        state = eqx.tree_at(lambda s: s.key, state, key)
        state, metrics = update(state, batches.replay, rows, update_key)
        return eqx.filter(state, eqx.is_array), metrics

    dynamic, metrics = jax.lax.scan(body, dynamic, batches.rows)
    return eqx.combine(dynamic, static), jax.tree.map(jnp.mean, metrics)


def _update(algorithm: AbstractAlgorithm[S], phase: Phase) -> _Update[S]:
    if phase == "main":
        return algorithm.update
    if not isinstance(algorithm, AbstractPretrained):
        raise TypeError(f"{type(algorithm).__name__} trains no reference before the rest: it has no such phase.")
    return algorithm.pretrain
