"""How a reference is fitted: weighted batches, an average of its weights, a one-step sampler beside it."""

from collections.abc import Callable
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jaxtyping import Array, Float

from flowrl._custom_types import Key
from flowrl.rl.learning._train import Trainable, copied, polyak
from flowrl.rl.networks import AbstractReference, FlowReference, GaussianReference, OneStepReference


class ReferenceState(eqx.Module):
    """A reference in training.

    Attributes:
        model: μ with its optimiser.
        average: the average of its weights, or None.
        one_step: the distilled sampler with its optimiser, or None.
    """

    model: Trainable[AbstractReference]
    average: AbstractReference | None
    one_step: Trainable[OneStepReference] | None

    @property
    def network(self) -> AbstractReference:
        """The model that stands for the behaviour policy: the average if there is one."""
        return self.model.network if self.average is None else self.average

    @property
    def action_size(self) -> int:
        """Coordinates of an action."""
        return self.network.action_size

    def sample(self, observation: Float[Array, " obs"], noise: Float[Array, " act"]) -> Float[Array, " act"]:
        """Turn noise into an action, by the one-step sampler if there is one.

        Args:
            observation: s, standardised.
            noise: standard normal.
        """
        sampler = self.network if self.one_step is None else self.one_step.network
        return sampler.sample(observation, noise)


class ReferenceLearner(eqx.Module):
    """How a reference is fitted.

    Attributes:
        kind: "flow" for a flow-matching model, "gaussian" for a normal law.
        hidden: widths of the hidden layers.
        steps: K, Euler steps of a sample of the flow.
        learning_rate: Adam's rate.
        decay_updates: updates over which the rate falls to 0 as a cosine, or None for a constant rate.
        average: decay in [0, 1) of an exponential moving average of the weights, which then stands for the reference;
            0 for none.
        one_step: distil a sampler of one step, and sample by it.
    """

    kind: Literal["flow", "gaussian"] = eqx.field(static=True)
    hidden: tuple[int, ...] = eqx.field(static=True)
    steps: int = eqx.field(static=True)
    learning_rate: float = eqx.field(static=True)
    decay_updates: int | None = eqx.field(static=True)
    average: float = eqx.field(static=True)
    one_step: bool = eqx.field(static=True)

    def init(self, observation_size: int, action_size: int, *, key: Key) -> ReferenceState:
        """Make the state before the first update.

        Args:
            observation_size: coordinates of s.
            action_size: coordinates of a.
            key: randomness of the weights.
        """
        if self.kind == "flow":
            model = FlowReference(observation_size, action_size, self.hidden, steps=self.steps, key=key)
        else:
            model = GaussianReference(observation_size, action_size, self.hidden, key=key)
        one_step = None
        if self.one_step:
            sampler = OneStepReference(observation_size, action_size, self.hidden, key=jr.fold_in(key, 1))
            one_step = Trainable.start(sampler, self._optimiser)
        average = copied(model) if self.average > 0 else None
        return ReferenceState(Trainable.start(model, self._optimiser), average, one_step)

    def restarted(self, state: ReferenceState) -> ReferenceState:
        """Keep the networks and start their optimisers anew.

        Args:
            state: whoever trained it.
        """

        def start(part: Trainable | None) -> Trainable | None:
            return None if part is None else Trainable.start(part.network, self._optimiser)

        return eqx.tree_at(
            lambda s: (s.model, s.one_step),
            state,
            (start(state.model), start(state.one_step)),
            is_leaf=lambda x: x is None or isinstance(x, Trainable),
        )

    def update(
        self,
        state: ReferenceState,
        observations: Float[Array, "batch obs"],
        actions: Float[Array, "batch act"],
        key: Key,
        weights: Float[Array, " batch"] | None = None,
    ) -> tuple[ReferenceState, dict[str, Float[Array, ""]]]:
        """Fit the reference to a batch.

        Args:
            state: the current state.
            observations: s, standardised.
            actions: a.
            key: randomness of this update.
            weights: weight >= 0 of each transition; their mean is brought to 1. None weighs all the same.

        Returns:
            The next state, and the metrics `reference_loss` and, with a one-step sampler, `distillation_loss`.
        """
        noise_key, time_key, distillation_key = jr.split(key, 3)
        noise = jr.normal(noise_key, actions.shape, actions.dtype)
        time = jr.uniform(time_key, actions.shape[:1], actions.dtype)
        loss, gradient = eqx.filter_value_and_grad(reference_loss)(
            state.model.network, observations, actions, noise, time, weights
        )
        model = state.model.updated(gradient, self._optimiser)
        average = None if state.average is None else polyak(state.average, model.network, 1 - self.average)
        metrics, one_step = {"reference_loss": loss}, state.one_step
        if one_step is not None:
            teacher = model.network if average is None else average
            noise = jr.normal(distillation_key, actions.shape, actions.dtype)
            loss, gradient = eqx.filter_value_and_grad(_distillation_loss)(
                one_step.network, teacher, observations, noise
            )
            one_step = one_step.updated(gradient, self._optimiser)
            metrics["distillation_loss"] = loss
        return ReferenceState(model, average, one_step), metrics

    @property
    def _optimiser(self) -> optax.GradientTransformation:
        rate, updates = self.learning_rate, self.decay_updates
        return optax.adam(rate if updates is None else optax.cosine_decay_schedule(rate, updates))


def reference_loss(
    reference: AbstractReference,
    observations: Float[Array, "batch obs"],
    actions: Float[Array, "batch act"],
    noise: Float[Array, "batch act"],
    time: Float[Array, " batch"],
    weights: Float[Array, " batch"] | None = None,
) -> Float[Array, ""]:
    """Give the loss of a batch.

    Args:
        reference: μ.
        observations: s, standardised.
        actions: a.
        noise: standard normal.
        time: uniform on [0, 1].
        weights: weight of each transition, or None.
    """
    losses = jax.vmap(reference.loss)(observations, actions, noise, time)
    return jnp.mean(losses) if weights is None else jnp.mean(weights * losses) / jnp.maximum(jnp.mean(weights), 1e-8)


def _distillation_loss(
    sampler: OneStepReference, teacher: AbstractReference, observations: Array, noise: Array
) -> Array:
    return jnp.mean(jax.vmap(lambda s, z: sampler.loss(teacher, s, z))(observations, noise))


def sample_sets(
    sample: Callable[[Array, Array], Array],
    observations: Float[Array, "batch obs"],
    noise: Float[Array, "batch n act"],
) -> Float[Array, "batch n act"]:
    """Sample n actions in every state.

    Args:
        sample: of one state and one noise.
        observations: s, standardised.
        noise: standard normal.
    """
    return jax.vmap(lambda s, z: jax.vmap(lambda x: sample(s, x))(z))(observations, noise)


@eqx.filter_jit
def sample_rows(
    reference: ReferenceState, observations: Float[Array, "rows obs"], size: int, samples: int, chunk: int, key: Key
) -> Float[Array, "rows samples act"]:
    """Sample a reference in many states, some at a time.

    Args:
        reference: what is sampled.
        observations: s, standardised.
        size: coordinates of an action.
        samples: samples a state.
        chunk: states sampled at a time.
        key: randomness.
    """
    rows, width = observations.shape
    padding = jnp.zeros((-rows % chunk, width), observations.dtype)
    chunks = jnp.concatenate([observations, padding]).reshape(-1, chunk, width)

    def one_chunk(arguments: tuple[Array, Array]) -> Array:
        index, block = arguments
        noise = jr.normal(jr.fold_in(key, index), (chunk, samples, size), block.dtype)
        return sample_sets(reference.sample, block, noise)

    sampled = jax.lax.map(one_chunk, (jnp.arange(chunks.shape[0]), chunks))
    return sampled.reshape(-1, samples, size)[:rows]
