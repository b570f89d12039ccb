"""Targets given by a scalar function: `Boltzmann` over a value, `Density` by its log."""

import abc
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowrl._custom_types import Key, Particle, Scalar
from flowrl._target._base import AbstractTarget, as_arguments
from flowrl._target._function import as_function, called, scalar


class AbstractValueTarget(AbstractTarget):
    """A target given by a scalar function of a particle; its gradient is taken by autodiff.

    A subclass writes `value` and `scaled_log_density`, and declares `needs_positive_temperature`.

    Attributes:
        knows: "value" and "gradient".
        stochastic: False; a value that draws at random subclasses `AbstractTarget`.
        needs_positive_temperature: True if the scaled log density is α × a log density, False if it is a value at
            every α.
    """

    knows: ClassVar[frozenset[str]] = frozenset({"value", "gradient"})

    @abc.abstractmethod
    def value(self, particle: Particle) -> Float[Array, ""]: ...

    @abc.abstractmethod
    def scaled_log_density(self, particle: Particle, temperature: Scalar, *, key: Key | None) -> Float[Array, ""]: ...

    def gradient(self, particle: Particle, temperature: Scalar, *, key: Key | None) -> Particle:
        return self.value_and_gradient(particle, temperature, key=key)[1]

    def value_and_gradient(
        self, particle: Particle, temperature: Scalar, *, key: Key | None
    ) -> tuple[Float[Array, ""], Particle]:
        name = f"{type(self).__name__}.scaled_log_density"
        log_density, gradient = jax.value_and_grad(
            lambda x: scalar(self.scaled_log_density(x, temperature, key=key), name)
        )(particle)
        # Outside the support autodiff can be finite all the same (that of log x is, at x < 0).
        return log_density, jax.tree.map(lambda leaf: jnp.where(jnp.isfinite(log_density), leaf, jnp.nan), gradient)


class Boltzmann(AbstractValueTarget):
    """The distribution ∝ exp(V(x)/α) of a value V: a Q-function, a reward model, a fitness.

    V(x) = `value(*args, x)`, as `functools.partial(value, *args)` would. `args` and the leaves of `value` (if it is an
    Equinox module) travel as arrays, so new weights or states never recompile. To anneal a log density by a schedule of
    temperatures see [Annealing](../api/targets.md#annealing).

    Example:
        ```python
        import jax.numpy as jnp
        import flowrl

        def q(state, action):
            return -jnp.sum((action - state) ** 2)

        target = flowrl.Boltzmann(q, jnp.ones(2))
        ```

    ??? cite "Source"
        Haarnoja et al., *Reinforcement Learning with Deep Energy-Based Policies*, ICML 2017, eq. 3: the policy that
        maximises E[Q] + α entropy.
    """

    function: Callable[..., Any]
    args: tuple[Any, ...]
    needs_positive_temperature: ClassVar[bool] = False

    def __init__(self, value: Any, *args: Any):
        """Create the target.

        Args:
            value: function of `(*args, particle)` that returns one scalar, or a distribution with `log_prob`, whose
                value is log p. Use a named function or a module: a new lambda for each call recompiles.
            args: leading arguments of `value`: states, prompts, masks; any PyTrees.
        """
        self.function = as_function(value, "value")
        self.args = as_arguments(args)

    def value(self, particle: Particle) -> Float[Array, ""]:
        return scalar(called(self.function, *self.args, particle, name="value", particle=particle), "value")

    def scaled_log_density(self, particle: Particle, temperature: Scalar, *, key: Key | None) -> Float[Array, ""]:
        del temperature, key
        return self.value(particle)


class Density(AbstractValueTarget):
    """The distribution p(x) itself, at every temperature α > 0: U = α log p.

    Distributions with a method `log_prob` over one particle (numpyro's, distrax', flowjax') are taken as they are, and
    so is a `logdensity_fn(position)` as blackjax has. A distribution with a batch shape returns a vector: make the
    batch part of the event, `.to_event(1)` in numpyro.

    Example:
        ```python
        import jax.numpy as jnp
        import flowrl

        target = flowrl.Density(lambda x: -0.5 * jnp.sum(x**2))
        ```
    """

    function: Callable[..., Any]
    args: tuple[Any, ...]
    needs_positive_temperature: ClassVar[bool] = True

    def __init__(self, log_prob: Any, *args: Any):
        """Create the target.

        Args:
            log_prob: function of `(*args, particle)` that returns log p up to a constant, one scalar; or an object with
                such a method, which is taken also if the object can be called. If it is a PyTree, as Equinox modules
                and the distributions of numpyro are, new parameters do not recompile.
            args: leading arguments of `log_prob`: data, hyperparameters; any PyTrees.
        """
        self.function = as_function(log_prob, "log_prob")
        self.args = as_arguments(args)

    def value(self, particle: Particle) -> Float[Array, ""]:
        return scalar(called(self.function, *self.args, particle, name="log_prob", particle=particle), "log_prob")

    def scaled_log_density(self, particle: Particle, temperature: Scalar, *, key: Key | None) -> Float[Array, ""]:
        del key
        value = self.value(particle)
        return temperature.astype(value.dtype) * value
