"""The unit of length in which proposals along a trajectory move, learned from the set."""

import abc
from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
from equinox import AbstractVar
from jaxtyping import Array, Float, PyTree

from flowrl._custom_types import Positions
from flowrl._misc import check_fields
from flowrl._solver._ensemble import Ensemble, Step

Row = Float[Array, "1 d"]


class AbstractScale(eqx.Module):
    """Linear coordinates w of a trajectory, z = S w, in which the set is about round.

    S is learned in the first share of the budget, and is then fixed, so that what is sampled after it is exact. One
    particle alone learns nothing.

    Attributes:
        share: the first share of the budget in which it learns, in [0, 1]. Within `Metropolis` its own share counts.
    """

    share: AbstractVar[float]

    def __check_init__(self):
        check_fields(self, shares=("share",))

    @abc.abstractmethod
    def first(self, like: Positions) -> PyTree:
        """Return S = 1 before anything is learned, as the other methods keep it.

        Args:
            like: an array (n, d) of the shape and dtype.
        """

    @abc.abstractmethod
    def learned(self, kept: PyTree, step: Step, ensemble: Ensemble) -> PyTree:
        """Return S after one more look at the set, whatever the share.

        Args:
            kept: S so far.
            step: the step.
            ensemble: two particles or more.
        """

    @abc.abstractmethod
    def moved(self, kept: PyTree, w: Positions) -> Positions:
        """Return S w of each row (n, d).

        Args:
            kept: S.
            w: (n, d).
        """

    @abc.abstractmethod
    def pulled(self, kept: PyTree, gradient: Positions) -> Positions:
        """Return Sᵀ g, the gradient in w, of each row (n, d).

        Args:
            kept: S.
            gradient: g, in z, (n, d).
        """

    @abc.abstractmethod
    def deviations(self, kept: PyTree) -> Float[Array, " d"]:
        """Return the standard deviation of each coordinate z.

        Args:
            kept: S.
        """


class LearnedScale(AbstractScale):
    """A unit of length for each coordinate, the standard deviation of the particles, smoothed over steps.

    Attributes:
        share: the first share of the budget in which it learns, in [0, 1]. Within `Metropolis` its own share counts.
    """

    share: float = eqx.field(static=True, default=0.5)

    def first(self, like: Positions) -> Row:
        return jnp.ones((1, like.shape[1]), like.dtype)

    def learned(self, kept: Row, step: Step, ensemble: Ensemble) -> Row:
        centred, mass = _centred(step, ensemble)
        variance = jnp.sum(mass * centred**2, axis=0, keepdims=True)
        weight = _weight(step, ensemble, kept)
        return jnp.sqrt((1 - weight) * kept**2 + weight * variance)

    def moved(self, kept: Row, w: Positions) -> Positions:
        return kept * w

    def pulled(self, kept: Row, gradient: Positions) -> Positions:
        return kept * gradient

    def deviations(self, kept: Row) -> Float[Array, " d"]:
        return kept[0]


class _Covariance(NamedTuple):
    """The smoothed covariance, and the lower factor of it after shrinkage."""

    smooth: Float[Array, "d d"]
    factor: Float[Array, "d d"]


class LearnedCovariance(AbstractScale):
    r"""The covariance of the particles, smoothed over steps: directions that are narrow and askew become round too.

    Of n particles in d dimensions the correlations are multiplied by $n t / (n t + 4 d)$ after t steps, so that it is a
    covariance in many dimensions as well. A step takes O(n d²) for the moves and O(d³) while it learns.

    Attributes:
        share: the first share of the budget in which it learns, in [0, 1]. Within `Metropolis` its own share counts.

    Example:
        ```python
        import jax
        import jax.numpy as jnp
        import flowrl

        target = flowrl.Density(lambda x: -0.5 * (x[0] - x[1]) ** 2 / 0.01 - 0.5 * jnp.sum(x**2))  # a narrow ridge
        solver = flowrl.Metropolis(flowrl.Microcanonical(8, scale=flowrl.LearnedCovariance()))
        start, key = jax.random.normal(jax.random.key(0), (200, 2)), jax.random.key(1)
        solution = flowrl.transport(
            target, start, flowrl.Budget(100, None), flow=flowrl.Langevin(), solver=solver, key=key
        )
        across = solution.particles[:, 0] - solution.particles[:, 1]
        assert abs(float(across.std()) - 0.1) < 0.02
        ```
    """

    share: float = eqx.field(static=True, default=0.5)

    def first(self, like: Positions) -> _Covariance:
        unit = jnp.eye(like.shape[1], dtype=like.dtype)
        return _Covariance(unit, unit)

    def learned(self, kept: _Covariance, step: Step, ensemble: Ensemble) -> _Covariance:
        centred, mass = _centred(step, ensemble)
        dtype = centred.dtype
        weight = _weight(step, ensemble, kept.smooth)
        smooth = (1 - weight) * kept.smooth + weight * jnp.matmul((mass * centred).T, centred, precision="highest")
        n, d = centred.shape
        known = n * (step.index + 1).astype(dtype)
        deviation = jnp.sqrt(jnp.maximum(jnp.diagonal(smooth), jnp.finfo(dtype).tiny))
        correlation = smooth / deviation[:, None] / deviation[None, :] * (known / (known + 4 * d))
        factor = jnp.linalg.cholesky(jnp.where(jnp.eye(d, dtype=bool), 1, correlation))
        factor = jnp.where(jnp.all(jnp.isfinite(factor)), factor, jnp.eye(d, dtype=dtype))
        return _Covariance(smooth, deviation[:, None] * factor)

    def moved(self, kept: _Covariance, w: Positions) -> Positions:
        return jnp.matmul(w, kept.factor.T, precision="highest")

    def pulled(self, kept: _Covariance, gradient: Positions) -> Positions:
        return jnp.matmul(gradient, kept.factor, precision="highest")

    def deviations(self, kept: _Covariance) -> Float[Array, " d"]:
        return jnp.sqrt(jnp.diagonal(kept.smooth))


def _centred(step: Step, ensemble: Ensemble) -> tuple[Positions, Float[Array, "n 1"]]:
    """Return the positions less their mean (n, d), and the weights of the particles, whose sum is 1."""
    mass = step.view.mass(ensemble.alive)[:, None]
    mass = mass / jnp.maximum(jnp.sum(mass), jnp.finfo(mass.dtype).tiny)
    positions = jnp.where(mass > 0, ensemble.positions, 0)
    return positions - jnp.sum(mass * positions, axis=0, keepdims=True), mass


def _weight(step: Step, ensemble: Ensemble, like: Array) -> Float[Array, ""]:
    """Return the weight of the latest set: the first steps are forgotten, and all of the later ones count."""
    # A few particles know little of a variance; and a set that starts in one place is not to stay there.
    total = jnp.sum(step.view.mass(ensemble.alive)).astype(like.dtype)
    return 4 / (step.index + 13).astype(like.dtype) * total / (total + 5)
