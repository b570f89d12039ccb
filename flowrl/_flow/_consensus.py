"""Consensus-based optimisation: particles drift to their weighted mean and explore in proportion to their distance."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike

from flowrl._custom_types import Mask, Positions
from flowrl._flow._base import AbstractStochasticFlow
from flowrl._flow._target_view import TargetView
from flowrl._flow._traits import Traits
from flowrl._kernel import centre
from flowrl._misc import number, row_norm


class Consensus(AbstractStochasticFlow):
    r"""Consensus-based optimisation: a global search for the maximum of the value that needs no gradient.

    $$dz_i = -λ (z_i - m) dt + σ D(z_i - m) dW_i, \qquad
      m = \sum_j z_j e^{U_j/α} \Big/ \sum_j e^{U_j/α}$$

    with D(r) = diag(r) (anisotropic: each coordinate explores by itself, which is what works in many dimensions) or |r|
    times the identity. At α → 0 the consensus m is the best particle, at α → ∞ the mean. A `Boltzmann(value)` weighs by
    exp(V/α); a `Density` has U = α log p, so it weighs by p whatever α. Weights of the particles multiply these.

    It maximises, and samples nothing: all particles end in one point, and no Jacobian enters on a mapped domain. Steps
    need λε < 1. The default σ is beyond the bound below which the set contracts in mean square, which
    [a search among many maxima wants](../concepts/flows.md#exploration-of-consensus).

    Attributes:
        drift: λ >= 0, how fast particles come to the consensus, an array ().
        diffusion: σ >= 0, how far they explore on the way, an array (); 0 still needs a key.
        anisotropic: whether each coordinate explores by its own distance to the consensus.

    Raises:
        ValueError: a concrete number is negative, infinite or not a scalar.

    ??? cite "Source"
        Pinnau, Totzeck, Tse and Martin, *A consensus-based model for global optimization and its mean-field limit*,
        M3AS 27, 2017. Carrillo, Jin, Li and Zhu, *A consensus-based global optimization method for high dimensional
        machine learning problems*, ESAIM: COCV 27, 2021 (anisotropic noise).
    """

    drift: Array
    diffusion: Array
    anisotropic: bool = eqx.field(static=True)
    traits: ClassVar[Traits] = Traits(
        needs=frozenset({"value"}), temperature="positive", entropic=False, diffuses=True, weighs=True
    )

    def __init__(self, drift: ArrayLike = 1.0, diffusion: ArrayLike = 2.0, *, anisotropic: bool = True):
        self.drift = number("drift", drift, _at_least_zero, "a finite number >= 0")
        self.diffusion = number("diffusion", diffusion, _at_least_zero, "a finite number >= 0")
        self.anisotropic = anisotropic

    def velocity(self, view: TargetView, positions: Positions, alive: Mask) -> tuple[Positions, Mask]:
        apart, alive = _from_consensus(view, positions, alive)
        return -self.drift.astype(apart.dtype) * apart, alive

    def noise(self, view: TargetView, positions: Positions, alive: Mask, white: Positions) -> Positions:
        apart, _ = _from_consensus(view, positions, alive)
        size = apart if self.anisotropic else row_norm(apart)[:, None]
        return self.diffusion.astype(apart.dtype) * size * white


def _at_least_zero(value: np.ndarray) -> bool:
    return bool(0 <= value < np.inf)


def _from_consensus(view: TargetView, positions: Positions, alive: Mask) -> tuple[Positions, Mask]:
    """Return z − m, zero for frozen particles, and who is still alive."""
    log_density, alive = view.scaled_log_density(positions, alive)
    counts = alive if view.weights is None else view.mass(alive) > 0
    # The best is subtracted before dividing, so that no temperature overflows.
    best = jax.lax.stop_gradient(jnp.max(jnp.where(counts, log_density, -jnp.inf)))
    below = jnp.where(counts, log_density - jnp.where(jnp.any(counts), best, 0), 0)
    logits = below / view.temperature
    if view.weights is not None:
        logits = logits + jnp.log(jnp.where(counts, view.mass(alive), 1))
        top = jax.lax.stop_gradient(jnp.max(jnp.where(counts, logits, -jnp.inf)))
        logits = jnp.where(counts, logits - top, 0)
    weight = jnp.where(counts, jnp.exp(logits), 0)
    z = centre(positions, alive)
    # Not a maximum with 1, which the sum often is: a tie would halve the derivative.
    mean = (weight[None] @ z) / jnp.where(jnp.any(counts), jnp.sum(weight), 1)
    return jnp.where(alive[:, None], z - mean, 0), alive
