"""Steps by an optax optimiser."""

import functools
import importlib
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp

from flowrl._custom_types import PerParticle
from flowrl._solver._ensemble import Ensemble, Step
from flowrl._solver._needs import Needs
from flowrl._solver._speed import flow_speed
from flowrl._solver._step import AbstractStepSolver


def _library() -> Any:
    # Not at the top: it would be a tenth of the time that importing flowrl takes.
    return importlib.import_module("optax")


@functools.cache  # one and the same, or every transport would compile again
def _adam() -> Any:
    # The tiny root keeps the reverse-mode derivative finite where a coordinate's gradient is exactly zero.
    return _library().adam(1.0, eps_root=1e-16)


class Optax(AbstractStepSolver):
    """Steps by an optimiser: it is fed −velocity, and x ← x + ε × its update.

    With Adam of unit rate (the default) the steps are scale-free: a coordinate moves by about ε per step, whatever the
    scale of the value, so after L steps it has moved about L ε. Every transport starts from a fresh optimiser state.
    Stochastic flows are refused: rescaling noise changes the distribution it samples.

    Of the optimisers in `optax.contrib` that are said to need no rate, `prodigy` and `dadapt_adamw` bring SVGD to rest
    as they are, with a step size of 1; `cocob`, `dog` and `dowg` are slow on some targets, `schedule_free_adamw` keeps
    a rate of its own, and `momo` asks for the value of a loss, which a flow does not have. The numbers, beside those of
    `flowrl.Coin`, are in [Choosing a flow](../concepts/flows.md#solvers-without-a-step-size).

    Attributes:
        optimiser: an `optax.GradientTransformation`, complete and of unit learning rate; the step size belongs to the
            budget. Create it once and keep it: a new one compiles again.

    Example:
        ```python
        import jax.numpy as jnp
        import optax
        import flowrl

        start, budget = jnp.zeros((4, 2)), flowrl.Budget(5, 0.1)
        for steepness in (1.0, 1000.0):  # Adam's steps do not depend on it
            target = flowrl.Boltzmann(lambda a, x: a * jnp.sum(x), steepness)
            moved = flowrl.transport(target, start, budget, flow=flowrl.Ascent(), solver=flowrl.Optax())
            assert jnp.allclose(moved.particles, 0.5, atol=1e-3)
        adagrad = flowrl.Optax(optax.adagrad(1.0))
        ```

    ??? cite "Source"
        The VGF authors' code moves its particles by Adam, with fresh moments for every batch.
    """

    optimiser: Any = eqx.field(default_factory=_adam)
    needs: ClassVar[Needs] = Needs()

    def __check_init__(self):
        if not isinstance(self.optimiser, _library().GradientTransformation):
            raise TypeError(f"optimiser must be an optax optimiser such as optax.adam(1.0), got {self.optimiser!r}.")

    def init(self, step: Step, ensemble: Ensemble) -> Ensemble:
        del step
        return ensemble.replace(memory=self.optimiser.init(ensemble.positions))

    def step(self, step: Step, ensemble: Ensemble) -> Ensemble:
        velocity, alive = step.velocity(ensemble)
        # Some optax transforms mix dtypes (adam raises a float32 rate to an int32 power); the results are cast back.
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            update, memory = self.optimiser.update(-velocity, ensemble.memory, ensemble.positions)
        memory = jax.tree.map(lambda new, old: jnp.asarray(new).astype(jnp.asarray(old).dtype), memory, ensemble.memory)
        moved = ensemble.moved(step.size * jnp.asarray(update).astype(velocity.dtype), alive)
        return moved.replace(memory=memory)

    def speed(self, step: Step, ensemble: Ensemble, moved: PerParticle) -> PerParticle:
        del moved
        # An optimiser that shortens its steps (Adagrad) would seem to come to rest anywhere.
        return flow_speed(step, ensemble)
