"""FlowQL and Diffusion-QL: a generative policy that fits the data and climbs the critic through all its steps."""

import abc
import dataclasses
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Int

from flowrl._custom_types import Key
from flowrl._misc import check_fields
from flowrl.rl.data.replay import Replay
from flowrl.rl.learning import AbstractGenerative, Trainable, copied, polyak, reference_loss, sample_sets
from flowrl.rl.learning.baselines._actor_critic import (
    AbstractActorCritic,
    AbstractActorCriticState,
    backup,
    critic_step,
    gather,
    magnitude,
)
from flowrl.rl.networks import (
    AbstractAggregate,
    AbstractCritic,
    AbstractCriticModel,
    AbstractReference,
    AbstractReferenceModel,
    Denoising,
    FlowMatching,
    Mean,
    Minimum,
    ScalarCritic,
    aggregated_value,
)


class AbstractActorValue(eqx.Module):
    """What a policy climbs: the ensemble's values of its actions in a batch, as one number."""

    @abc.abstractmethod
    def __call__(
        self,
        critic: AbstractCritic,
        aggregate: AbstractAggregate,
        observations: Float[Array, "batch obs"],
        actions: Float[Array, "batch act"],
        key: Key,
    ) -> Float[Array, ""]:
        """Compute the number.

        Args:
            critic: the ensemble.
            aggregate: makes its members one number.
            observations: s, standardised.
            actions: of the policy.
            key: randomness.
        """


class AggregatedValue(AbstractActorValue):
    """The mean of the aggregated value.

    Attributes:
        normalise: divide by the mean of its modulus, a constant to the gradient, so that weights have no units.
    """

    normalise: bool = eqx.field(static=True, default=False)

    def __call__(
        self,
        critic: AbstractCritic,
        aggregate: AbstractAggregate,
        observations: Float[Array, "batch obs"],
        actions: Float[Array, "batch act"],
        key: Key,
    ) -> Float[Array, ""]:
        del key
        values = jax.vmap(lambda s, a: aggregated_value(critic, aggregate, s, a))(observations, actions)
        return jnp.mean(values) / magnitude(values) if self.normalise else jnp.mean(values)


class RandomMemberValue(AbstractActorValue):
    """The mean of a random member, over the mean modulus of the next, a constant to the gradient."""

    def __call__(
        self,
        critic: AbstractCritic,
        aggregate: AbstractAggregate,
        observations: Float[Array, "batch obs"],
        actions: Float[Array, "batch act"],
        key: Key,
    ) -> Float[Array, ""]:
        del aggregate
        values = jax.vmap(critic)(observations, actions)
        member = jr.randint(key, (), 0, values.shape[1])
        return jnp.mean(values[:, member]) / magnitude(values[:, (member + 1) % values.shape[1]])


class GenerativeQLState(AbstractActorCriticState):
    """Everything that training changes.

    Attributes:
        actor: π.
        target_actor: the average of its weights, or None.
    """

    actor: Trainable[AbstractReference]
    target_actor: AbstractReference | None
    critic: Trainable[AbstractCritic]
    target_critic: AbstractCritic
    step: Int[Array, ""]
    key: Key


class GenerativeQL(AbstractActorCritic[GenerativeQLState], AbstractGenerative[GenerativeQLState]):
    r"""A generative policy that fits the data and climbs the critic through all its sampling steps.

    $$\mathcal{L}_\pi = \alpha\, \mathcal{L}_\text{fit}(\pi) - \eta\, V(\hat a), \qquad \hat a \sim \pi(\cdot|s)$$

    $$\mathcal{L}_Q = \sum_k \mathbb{E}\,(Q_k(s, a) - y)^2, \qquad
      y = r + \gamma \max_{i} \operatorname{agg}_k \bar Q_k(s', a_i), \quad a_i \sim \bar\pi(\cdot|s')$$

    The fit is the loss of the policy's model, V its `actor_value`, agg the aggregate `target`, and bars are averages of
    weights. [`flow_ql`][flowrl.rl.baselines.flow_ql] and [`diffusion_ql`][flowrl.rl.baselines.diffusion_ql] are its
    settings.

    Attributes:
        model: the generative model that the policy is.
        actor_value: V.
        alpha: α >= 0, weight of the fit to the data.
        eta: η >= 0, weight of the value.
        backup_samples: actions sampled at a bootstrap state, of which the target takes the best.
        actor_polyak: rate at which a target network of the policy follows it; None bootstraps from the policy itself.
    """

    model: AbstractReferenceModel = FlowMatching(10)
    actor_value: AbstractActorValue = AggregatedValue()
    alpha: float = eqx.field(static=True, default=1.0)
    eta: float = eqx.field(static=True, default=1.0)
    backup_samples: int = eqx.field(static=True, default=1)
    actor_polyak: float | None = eqx.field(static=True, default=None)
    target: AbstractAggregate = Mean()
    improvement: AbstractAggregate = Mean()
    selection: AbstractAggregate = Mean()
    polyak: float = eqx.field(static=True, default=0.005)
    learning_rate: float = eqx.field(static=True, default=3e-4)
    batch_size: int = eqx.field(static=True, default=256)
    hidden: tuple[int, ...] = eqx.field(static=True, default=(512, 512, 512, 512))
    members: int = eqx.field(static=True, default=2)
    critic: AbstractCriticModel = ScalarCritic()

    def __check_init__(self):
        check_fields(
            self,
            counts=("batch_size", "members", "backup_samples"),
            positive=("learning_rate",),
            at_least_zero=("alpha", "eta"),
            fractions=("polyak", "actor_polyak"),
            widths=("hidden",),
        )

    def init(self, observation_size: int, action_size: int, *, key: Key) -> GenerativeQLState:
        actor_key, critic_key, run_key = jr.split(key, 3)
        actor = self.model.init(observation_size, action_size, self.hidden, key=actor_key)
        critic, target_critic = self._start_critic(observation_size, action_size, critic_key)
        return GenerativeQLState(
            actor=Trainable.start(actor, self._optimiser),
            target_actor=None if self.actor_polyak is None else copied(actor),
            critic=critic,
            target_critic=target_critic,
            step=jnp.zeros((), jnp.int32),
            key=run_key,
        )

    def update(
        self, state: GenerativeQLState, replay: Replay, rows: Int[Array, " batch"], key: Key
    ) -> tuple[GenerativeQLState, dict[str, Float[Array, ""]]]:
        """Update the critic and the policy; metrics `td_loss`, `actor_loss`, `bc_loss` and `value`, the mean target."""
        backup_key, noise_key, time_key, sample_key, value_key = jr.split(key, 5)
        batch = gather(replay, rows)
        (size, act), dtype = batch.actions.shape, batch.actions.dtype
        actor, bootstrap = state.actor.network, state.target_actor
        noise = jr.normal(backup_key, (size, self.backup_samples, *actor.noise_shape), dtype)
        actions = sample_sets((actor if bootstrap is None else bootstrap).sample, batch.next_observations, noise)
        targets = backup(state.target_critic, self.target, batch, actions)
        critic, td_loss = critic_step(state.critic, self._optimiser, batch, targets)
        (actor_loss, metrics), gradient = eqx.filter_value_and_grad(generative_ql_loss, has_aux=True)(
            actor,
            lambda sampled: self.actor_value(
                state.critic.network, self.improvement, batch.observations, sampled, value_key
            ),
            batch.observations,
            batch.actions,
            jr.normal(noise_key, (size, act), dtype),
            actor.times(time_key, size, dtype),
            jr.normal(sample_key, (size, *actor.noise_shape), dtype),
            self.alpha,
            self.eta,
        )
        trained, slow = state.actor.updated(gradient, self._optimiser), state.target_actor
        if slow is not None and self.actor_polyak is not None:
            slow = polyak(slow, trained.network, self.actor_polyak)
        state = dataclasses.replace(
            state,
            actor=trained,
            target_actor=slow,
            critic=critic,
            target_critic=polyak(state.target_critic, critic.network, self.polyak),
            step=state.step + 1,
        )
        return state, {"td_loss": td_loss, "actor_loss": actor_loss, "value": jnp.mean(targets), **metrics}

    def noise_shape(self, state: GenerativeQLState) -> tuple[int, ...]:
        return state.actor.network.noise_shape

    def decode(
        self, state: GenerativeQLState, observation: Float[Array, " obs"], noise: Float[Array, "..."]
    ) -> Float[Array, " act"]:
        return state.actor.network.sample(observation, noise)


def generative_ql_loss(
    actor: AbstractReference,
    value: Callable[[Float[Array, "batch act"]], Float[Array, ""]],
    observations: Float[Array, "batch obs"],
    actions: Float[Array, "batch act"],
    noise: Float[Array, "batch act"],
    times: Float[Array, " batch"] | Int[Array, " batch"],
    begin: Float[Array, "batch ..."],
    alpha: float,
    eta: float,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Compute α · fit − η · value of the samples that begin in `begin`, and the fit as the metric `bc_loss`."""
    bc_loss = reference_loss(actor, observations, actions, noise, times)
    sampled = jax.vmap(actor.sample)(observations, begin)
    return alpha * bc_loss - eta * value(sampled), {"bc_loss": bc_loss}


def flow_ql(*, reference_steps: int = 10, normalise: bool = False, **fields: object) -> GenerativeQL:
    r"""Return FlowQL: a flow that climbs the critic through all its Euler steps; FBRAC in the paper of FQL.

    $$\mathcal{L}_\pi = \alpha\, \mathbb{E}\,|w(s, x_t, t) - (a - x_0)|^2 - \mathbb{E}\,\operatorname{mean}_k
      Q_k(s, \pi(s, z)), \qquad x_t = (1 - t)\, x_0 + t\, a$$

    π(s, z) is where K Euler steps of the field w carry the noise z, clipped to [−1, 1]; x₀ and z are standard normal,
    t is uniform on [0, 1], and |·|² is the mean over coordinates. α is tuned for each task, in the units of the value.

    Args:
        reference_steps: K, Euler steps per sample.
        normalise: divide Q by the mean of |Q|, so that α has no units.
        fields: other fields of `GenerativeQL`.

    ??? cite "Source"
        Park et al., *Flow Q-Learning*, ICML 2025 (arXiv 2502.02538), eq. 6; defaults are those of FQL. There networks
        have GELUs, and LayerNorm after them in the critic.
    """
    value = AggregatedValue(normalise)
    return _setting({"model": FlowMatching(reference_steps), "actor_value": value, "alpha": 10.0}, fields)


def diffusion_ql(*, reference_steps: int = 5, **fields: object) -> GenerativeQL:
    r"""Return Diffusion-QL: a diffusion policy that climbs the critic through all its denoising steps.

    $$\mathcal{L}_\pi = \mathbb{E}\,|\epsilon_\theta(s, x_t, t) - \varepsilon|^2 -
      \eta\, \frac{\mathbb{E}\,Q_i(s, \hat a)}{\mathbb{E}\,|Q_j(s, \hat a)|}, \qquad \hat a \sim \pi(\cdot|s)$$

    The distribution of x_t is that of `DiffusionPolicy`, t is uniform on 1, ..., T, ε is the noise in x_t, and |·|² the
    mean over coordinates. Of the members, Q_i is one at random and Q_j the next. The paper tunes η for each data set,
    has 10 `backup_samples` for AntMaze and 1 elsewhere, and acts by softmax among 50 proposals.

    Args:
        reference_steps: T, denoising steps per sample.
        fields: other fields of `GenerativeQL`.

    ??? cite "Source"
        Wang et al., *Diffusion Policies as an Expressive Policy Class for Offline Reinforcement Learning*, ICLR 2023
        (arXiv 2208.06193). The original has Mish for ReLU, no LayerNorm, a sinusoidal embedding of t, and clips
        gradients; its average of the policy follows in each fifth update, here in each at a fifth of the rate; and it
        ranks proposals by the average of the critic, here by the critic itself.
    """
    setting = {
        "model": Denoising(reference_steps),
        "actor_value": RandomMemberValue(),
        "actor_polyak": 0.001,
        "target": Minimum(),
        "selection": Minimum(),
        "hidden": (256, 256, 256),
    }
    return _setting(setting, fields)


def _setting(setting: dict[str, object], fields: dict[str, object]) -> GenerativeQL:
    return GenerativeQL(**setting | fields)  # pyright: ignore[reportArgumentType]
