"""The proximal step of Jordan, Kinderlehrer and Otto, on the flow's energy."""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix as optx

from flowrl._custom_types import Positions, Scalar
from flowrl._flow import velocity_of
from flowrl._kernel import total_of
from flowrl._misc import check_count, refuse_checked_sharding
from flowrl._solution import RESULTS
from flowrl._solver._ensemble import Ensemble, Step
from flowrl._solver._needs import Needs
from flowrl._solver._step import AbstractStepSolver


class JKO(AbstractStepSolver):
    r"""The proximal (minimising-movement) step, implicit Euler for the Wasserstein gradient flow of an energy.

    $$x^{k+1} = \operatorname{argmin}_x\; E(x) + \frac{1}{2 h n} \sum_i |x_i - x^k_i|^2, \qquad h = \text{step\_size}$$

    An energy of particles does not depend on their order, so the least value over x with the coupling to the previous
    set held at the identity is that over x and the coupling: the JKO scheme itself. Weights of the particles take the
    place of 1/n. The minimiser starts at x^k, and finds a local minimum. The energy falls at every h. What the flow
    fits to data (a bandwidth) is fixed during a step. If the minimisation fails, the result is its `flowrl.RESULTS`,
    and the last iterate is kept.

    Attributes:
        minimiser: an optimistix minimiser, with its tolerances.
        max_steps: bound on the inner iterations of one step.

    Example:
        ```python
        import jax.numpy as jnp
        import flowrl

        target = flowrl.Boltzmann(lambda x: -0.5 * jnp.sum(x**2))
        start = jnp.ones((4, 2))
        # The exact proximal point of a quadratic is x / (1 + h), at any h.
        solution = flowrl.transport(
            target, start, flowrl.Budget(1, 9.0), flow=flowrl.Ascent(), solver=flowrl.JKO()
        )
        assert jnp.allclose(solution.particles, 0.1, atol=1e-3)
        ```

    ??? cite "Source"
        Jordan, Kinderlehrer and Otto, *The Variational Formulation of the Fokker-Planck Equation*, SIAM J. Math. Anal.
        1998. Rader, Lyons and Kidger, *Optimistix: modular optimisation in JAX and Equinox*, 2024.
    """

    minimiser: optx.AbstractMinimiser = optx.LBFGS(rtol=1e-5, atol=1e-6)
    max_steps: int = eqx.field(static=True, default=256)
    # The projection of the minimiser is not the minimiser under the constraint.
    needs: ClassVar[Needs] = Needs(energy=True, restriction=False)

    def __check_init__(self):
        if not isinstance(self.minimiser, optx.AbstractMinimiser):
            raise TypeError(
                f"minimiser must be optimistix's, such as optimistix.LBFGS(1e-5, 1e-6), got {self.minimiser!r}."
            )
        check_count("max_steps", self.max_steps)

    def step(self, step: Step, ensemble: Ensemble) -> Ensemble:
        refuse_checked_sharding("JKO", step, ensemble)
        flow, view, positions, step_size = step.flow, step.view, ensemble.positions, step.size
        _, alive = step.velocity(ensemble)
        fixed = flow.fitted(view, positions, alive)
        count = jnp.maximum(jnp.sum(alive.astype(positions.dtype)), 1)
        # Zero has no proximal pull to divide by; such a step stays where it is.
        h = jnp.where(step_size > 0, step_size, 1)
        # The minimiser keeps its history in the default precision, and fails on a move of another one.
        wide = jnp.result_type(float)
        mass = view.mass(alive)
        moves = (mass > 0)[:, None]
        # In units in which every particle is pulled back alike: a light one would hardly show in the objective.
        root = jnp.sqrt(jnp.where(moves, mass[:, None], 1) * count / total_of(mass))

        def objective(move: Positions, _: Any) -> Scalar:
            z = positions + jnp.where(moves, move.astype(positions.dtype) / root, 0)
            energy = (count * fixed.energy(view, z, alive)).astype(wide)
            return energy + jnp.sum(move**2) / (2 * h.astype(wide))

        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            start = jnp.zeros(positions.shape, wide)
            found = optx.minimise(objective, self.minimiser, start, max_steps=self.max_steps, throw=False)
        move = jnp.where(step_size > 0, found.value.astype(positions.dtype) / root, 0)
        result: Any = RESULTS
        result = result.where(step_size > 0, RESULTS.promote(found.result), result.successful)
        _, still = velocity_of(flow, view, positions + move, alive)
        return ensemble.moved(move, still).replace(result=result)
