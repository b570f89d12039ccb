"""The flow of the Sinkhorn divergence to samples."""

from typing import Any, ClassVar, NoReturn

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from flowrl._custom_types import Mask, Positions, Scalar
from flowrl._flow._base import AbstractFlow
from flowrl._flow._target_view import TargetView
from flowrl._flow._traits import Traits
from flowrl._misc import number
from flowrl._sinkhorn import displacements, divergence


class SinkhornFlow(AbstractFlow):
    r"""Gradient flow of the debiased Sinkhorn divergence to samples: optimal transport, softened at a length √ε.

    $$E(q) = \mathrm{OT}_ε(q, π) - \tfrac{1}{2} \mathrm{OT}_ε(q, q) - \tfrac{1}{2} \mathrm{OT}_ε(π, π), \qquad
      v(x_i) = T_{q→π}(x_i) - T_{q→q}(x_i)$$

    for the cost |x − y|²/2, with T the barycentric projections of the entropic plans. The target is an
    `Empirical(samples)`. As ε → 0 the particles go straight to the samples that optimal transport pairs them with, and
    one Euler step of size 1 arrives; as ε → ∞ all move alike, by the difference of the means. The gradient of the
    energy is exact; the potentials are constants for autodiff, so its second derivatives are not.

    The number of iterations is fixed; [how exact they are](../concepts/flows.md#iterations-of-sinkhornflow). Memory is
    O(block · m). One step costs about 2 · iterations + 30 sweeps over all pairs.

    Attributes:
        regularisation: ε > 0 as a multiple of the samples' total variance (1 where that is zero), an array ().
        iterations: number of Sinkhorn iterations >= 1, a Python int. Halving `regularisation` takes about √2 times as
            many for the same error.

    Raises:
        ValueError: a concrete regularisation is not one positive number, or iterations is not an int >= 1.

    ??? cite "Source"
        Genevay, Peyré and Cuturi, *Learning generative models with Sinkhorn divergences*, AISTATS 2018.
        Feydy et al., *Interpolating between optimal transport and MMD using Sinkhorn divergences*, AISTATS 2019.
    """

    regularisation: Array
    iterations: int = eqx.field(static=True)
    traits: ClassVar[Traits] = Traits(
        needs=frozenset({"samples"}),
        temperature="none",
        entropic=False,
        energy_needs=frozenset({"samples"}),
        weighs=True,
    )

    def __init__(self, regularisation: ArrayLike = 0.05, iterations: int = 100):
        positive = "a finite number > 0 (for plain optimal transport a small one, such as 0.01, with more iterations)"
        self.regularisation = number("regularisation", regularisation, lambda r: 0 < r < float("inf"), positive)
        if isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 1:
            raise ValueError(f"iterations must be a Python int >= 1, got {iterations!r}.")
        self.iterations = iterations

    def velocity(self, view: TargetView, positions: Positions, alive: Mask) -> tuple[Positions, Mask]:
        moves = _not_differentiable(displacements(positions, *self._against(view, alive)))
        return jnp.where(alive[:, None], moves, 0), alive

    def energy(self, view: TargetView, positions: Positions, alive: Mask) -> Scalar:
        return divergence(positions, *self._against(view, alive))

    def _against(self, view: TargetView, alive: Mask) -> tuple[Any, ...]:
        samples = view.samples()
        everyone = jnp.ones(samples.shape[0], samples.dtype)
        mass = view.mass(alive)
        if view.weights is not None:
            # A point of weight zero has no plan, but a living particle whose weight underflows shall move by its own.
            least = 2 * mass.shape[0] * jnp.finfo(mass.dtype).tiny  # a normal number after division by their sum, too
            mass = jnp.where(alive, jnp.maximum(mass, least), 0)
        return samples, mass, everyone, self._epsilon(samples), self.iterations

    def _epsilon(self, samples: Float[Array, "m d"]) -> Scalar:
        moved = samples - samples[:1]
        variance = jnp.mean(jnp.sum((moved - jnp.mean(moved, axis=0, keepdims=True)) ** 2, axis=1))
        unit = jnp.where(variance > jnp.finfo(variance.dtype).tiny, variance, 1)
        return self.regularisation.astype(variance.dtype) * unit


@jax.custom_jvp
def _not_differentiable(velocity: Positions) -> Positions:
    return velocity


@_not_differentiable.defjvp
def _refuse(primals: Any, tangents: Any) -> NoReturn:
    del primals, tangents
    # The potentials are constants for autodiff, which is right for the energy and would be silently wrong here.
    raise TypeError("a transport by SinkhornFlow cannot be differentiated; its energy can, and JKO descends that.")
