"""What IQL and IDQL share: values of the best actions of the data, learned without asking for any other action."""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from flowrl.nn import MLP
from flowrl.rl.learning import Trainable, polyak
from flowrl.rl.learning.baselines._actor_critic import Batch, critic_step
from flowrl.rl.networks import AbstractAggregate, AbstractCritic, aggregated_value


def state_values(network: MLP, observations: Float[Array, "batch obs"]) -> Float[Array, " batch"]:
    """Compute V(s)."""
    return jax.vmap(network)(observations)[:, 0]


def expectile_loss(
    network: MLP, observations: Float[Array, "batch obs"], values: Float[Array, " batch"], expectile: float
) -> Float[Array, ""]:
    """Compute the mean of |τ − 1(u < 0)| u² with u = Q(s, a) − V(s)."""
    excess = values - state_values(network, observations)
    return jnp.mean(jnp.where(excess < 0, 1 - expectile, expectile) * excess**2)


def implicit_step(
    value: Trainable[MLP],
    critic: Trainable[AbstractCritic],
    target_critic: AbstractCritic,
    batch: Batch,
    aggregate: AbstractAggregate,
    expectile: float,
    optimiser: optax.GradientTransformation,
    rate: float,
) -> tuple[
    tuple[Trainable[MLP], Trainable[AbstractCritic], AbstractCritic],
    dict[str, Float[Array, ""]],
    Float[Array, " batch"],
]:
    """Return V, Q and the target network after a step; metrics; and the advantages Q(s, a) − V(s), all before it."""
    values = jax.vmap(lambda s, a: aggregated_value(target_critic, aggregate, s, a))(batch.observations, batch.actions)
    value_loss, gradient = eqx.filter_value_and_grad(expectile_loss)(
        value.network, batch.observations, values, expectile
    )
    targets = batch.returns + batch.discounts * state_values(value.network, batch.next_observations)
    trained, td_loss = critic_step(critic, optimiser, batch, targets)
    metrics = {"td_loss": td_loss, "value_loss": value_loss, "value": jnp.mean(targets)}
    networks = (value.updated(gradient, optimiser), trained, polyak(target_critic, trained.network, rate))
    return networks, metrics, values - state_values(value.network, batch.observations)
