"""How a reference is fitted: weighted batches, an average of its weights, a one-step sampler beside it."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jaxtyping import Array, Float, Int

from flowrl._custom_types import Key
from flowrl._misc import check_fields
from flowrl.rl.learning._train import Trainable, copied, polyak
from flowrl.rl.networks import AbstractReference, AbstractReferenceModel, FlowMatching, OneStepReference


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
    def noise_shape(self) -> tuple[int, ...]:
        """Shape of the noise of one sample."""
        return self._sampler.noise_shape

    def sample(self, observation: Float[Array, " obs"], noise: Float[Array, "..."]) -> Float[Array, " act"]:
        """Turn noise into an action, by the one-step sampler if there is one.

        Args:
            observation: s, standardised.
            noise: standard normal, of `noise_shape`.
        """
        return self._sampler.sample(observation, noise)

    @property
    def _sampler(self) -> AbstractReference | OneStepReference:
        return self.network if self.one_step is None else self.one_step.network


class ReferenceLearner(eqx.Module):
    """Which model the reference is, and how it is fitted.

    Attributes:
        model: the generative model.
        hidden: widths of the hidden layers.
        learning_rate: Adam's rate.
        updates: updates over which the rate falls to 0 as a cosine; None keeps it constant.
        average: decay in [0, 1) of an exponential moving average of the weights, which then stands for the reference;
            0 for none.
        one_step: distil a sampler of one step, and sample by it.
    """

    model: AbstractReferenceModel = FlowMatching()
    hidden: tuple[int, ...] = eqx.field(static=True, default=(256, 256))
    learning_rate: float = eqx.field(static=True, default=1e-3)
    updates: int | None = eqx.field(static=True, default=8000)
    average: float = eqx.field(static=True, default=0.0)
    one_step: bool = eqx.field(static=True, default=False)

    def __check_init__(self):
        check_fields(self, counts=("updates",), positive=("learning_rate",), decays=("average",), widths=("hidden",))
        if not isinstance(self.model, AbstractReferenceModel):
            raise TypeError(f"model must be a model of flowrl.rl, such as FlowMatching(steps=5), got {self.model!r}.")

    def init(self, observation_size: int, action_size: int, *, key: Key) -> ReferenceState:
        """Return the state before the first update.

        Args:
            observation_size: coordinates of s.
            action_size: coordinates of a.
            key: randomness of the weights.

        Raises:
            ValueError: `one_step` with a model whose noise is not of the size of an action.
        """
        model = self.model.init(observation_size, action_size, self.hidden, key=key)
        one_step = None
        if self.one_step:
            if model.noise_shape != (action_size,):
                raise ValueError(f"one_step needs the noise of one action, {type(self.model).__name__} has more.")
            sampler = OneStepReference(observation_size, action_size, self.hidden, key=jr.fold_in(key, 1))
            one_step = Trainable.start(sampler, self._optimiser)
        average = copied(model) if self.average > 0 else None
        return ReferenceState(Trainable.start(model, self._optimiser), average, one_step)

    def restarted(self, state: ReferenceState) -> ReferenceState:
        """Return the same networks with optimisers before their first step.

        Args:
            state: of this learner or of one that differs in its rate.
        """
        one_step = state.one_step
        return ReferenceState(
            Trainable.start(state.model.network, self._optimiser),
            state.average,
            None if one_step is None else Trainable.start(one_step.network, self._optimiser),
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
        time = state.model.network.times(time_key, actions.shape[0], actions.dtype)
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
        rate, updates = self.learning_rate, self.updates
        return optax.adam(rate if updates is None else optax.cosine_decay_schedule(rate, updates))


def reference_loss(
    reference: AbstractReference,
    observations: Float[Array, "batch obs"],
    actions: Float[Array, "batch act"],
    noise: Float[Array, "batch act"],
    time: Float[Array, " batch"] | Int[Array, " batch"],
    weights: Float[Array, " batch"] | None = None,
) -> Float[Array, ""]:
    """Compute the loss of a batch.

    Args:
        reference: μ.
        observations: s, standardised.
        actions: a.
        noise: standard normal.
        time: from `reference.times`.
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
    noise: Float[Array, "batch n ..."],
) -> Float[Array, "batch n act"]:
    """Sample n actions in every state.

    Args:
        sample: of one state and one noise, such as `AbstractReference.sample`.
        observations: s, standardised.
        noise: standard normal.
    """
    return jax.vmap(lambda s, z: jax.vmap(lambda x: sample(s, x))(z))(observations, noise)


@eqx.filter_jit
def sample_rows(
    reference: ReferenceState, observations: Float[Array, "rows obs"], samples: int, chunk: int, key: Key
) -> Float[Array, "rows samples act"]:
    """Sample a reference in many states, `chunk` of them at a time to bound the memory.

    Args:
        reference: what is sampled.
        observations: s, standardised.
        samples: samples per state.
        chunk: states sampled at a time.
        key: randomness.
    """
    rows, width = observations.shape
    padding = jnp.zeros((-rows % chunk, width), observations.dtype)
    chunks = jnp.concatenate([observations, padding]).reshape(-1, chunk, width)

    def one_chunk(arguments: tuple[Array, Array]) -> Array:
        index, block = arguments
        noise = jr.normal(jr.fold_in(key, index), (chunk, samples, *reference.noise_shape), block.dtype)
        return sample_sets(reference.sample, block, noise)

    sampled = jax.lax.map(one_chunk, (jnp.arange(chunks.shape[0]), chunks))
    return sampled.reshape(-1, samples, sampled.shape[-1])[:rows]
