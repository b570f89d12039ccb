"""The ensemble Kalman sampler."""

from typing import ClassVar, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowrl._custom_types import Mask, Positions
from flowrl._flow._base import AbstractStochasticFlow
from flowrl._flow._covariance import correction, covariance_noise, deviations
from flowrl._flow._target_view import TargetView
from flowrl._flow._traits import Traits
from flowrl._target import InverseProblem


class EKS(AbstractStochasticFlow):
    r"""The ensemble Kalman sampler: `ALDI` for black boxes, with differences between particles for derivatives.

    With the mean m and the covariance C of the particles, and their covariance with the forward map
    $C_{xG} = \frac{1}{n} \sum_i (x_i - m)(G(x_i) - \bar G)^\top$,

    $$dx_i = -α \big[C_{xG} Γ^{-1} (G(x_i) - y) + C\,C_0^{-1} (x_i - m_0)\big] dt
      + α \frac{d + 1}{n} (x_i - m)\,dt + \sqrt{2α}\,C^{1/2}\,dW_i$$

    in the sense of Itô. Of a linear map it samples the posterior exactly, with every number of particles n > d + 1, and
    is then `ALDI`; of another map it samples an approximation that replaces G by the line through the particles, which
    is good where G is nearly linear across them. It is the same in all affine coordinates. A temperature changes the
    speed and not the distribution, as for `Density`.

    The target is an `InverseProblem`; each step evaluates G once per particle. Particles never leave their affine hull,
    so they start spread out, from the prior say, and n <= d of them sample the target restricted to it. Steps are
    [those of ALDI](../concepts/flows.md#steps-of-aldi): small while the set is wide, up to about 0.1/α in the end.

    Example:
        ```python
        import jax.numpy as jnp
        import jax.random as jr
        import flowrl


        def forward_map(x):
            return jnp.array([[1.0, 2.0], [3.0, -1.0], [0.0, 1.0]]) @ x


        problem = flowrl.InverseProblem(forward_map, [5.0, 1.0, 2.0], 0.5, prior_mean=[0.0, 0.0], prior_scale=3.0)
        prior, sizes = 3 * jr.normal(jr.key(0), (500, 2)), 0.1 * jnp.minimum(1, 0.01 * 1.1 ** jnp.arange(100.0))
        solution = flowrl.transport(problem, prior, flowrl.Budget(100, sizes), flow=flowrl.EKS(), key=jr.key(1))
        assert jnp.abs(solution.particles.mean(axis=0) - jnp.array([1.0, 2.0])).max() < 0.05
        ```

    ??? cite "Source"
        Garbuno-Inigo, Hoffmann, Li and Stuart, *Interacting Langevin Diffusions: Gradient Structure and Ensemble
        Kalman Sampler*, SIAM Journal on Applied Dynamical Systems 19(1), 2020, eq. 2.7. Nüsken and Reich, *Note on
        Interacting Langevin Diffusions: Gradient Structure and Ensemble Kalman Sampler*, arXiv:1908.10890, 2019: the
        correction for finite sets.
    """

    traits: ClassVar[Traits] = Traits(needs=frozenset({"forward"}), diffuses=True, unmapped=True)

    def velocity(self, view: TargetView, positions: Positions, alive: Mask) -> tuple[Positions, Mask]:
        target = cast(InverseProblem, view.target)
        misfit, alive = misfits(view, positions, alive)
        # To the sampler the prior is one more datum: its mean, seen through the identity.
        prior = jax.vmap(target.prior_misfit)(view.unravel(positions * view.scale))
        residual = jnp.where(alive[:, None], jnp.concatenate([misfit, prior], axis=1), 0)
        x, count = deviations(positions, alive)
        apart, _ = deviations(residual, alive)
        drift = correction(x.shape[1], count) * x - cross(residual, apart, x) / count
        return view.temperature * drift, alive

    def noise(self, view: TargetView, positions: Positions, alive: Mask, white: Positions) -> Positions:
        return covariance_noise(view, positions, alive, white)


def misfits(view: TargetView, positions: Positions, alive: Mask) -> tuple[Float[Array, "n m"], Mask]:
    """Return Γ^(−1/2) (G(x) − y) of every particle, zero for the frozen, and who is still alive."""
    predicted, alive = view.ask("forward", positions, alive)
    misfit = jax.vmap(cast(InverseProblem, view.target).misfit)(predicted)
    return jnp.where(alive[:, None], misfit, 0), alive


def cross(residual: Float[Array, "n m"], apart: Float[Array, "n m"], x: Positions) -> Positions:
    """Return Σ_j (residual_i · apart_j) x_j, the product in the cheaper order: through m × d or through n × n."""
    n, d = x.shape
    return residual @ (apart.T @ x) if d <= n else (residual @ apart.T) @ x
