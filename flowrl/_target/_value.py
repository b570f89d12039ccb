"""Targets given by a scalar function: `Boltzmann` over a value, `Density` by its log."""

import abc
from collections.abc import Callable
from typing import Any, ClassVar, NoReturn

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowrl._custom_types import Key, Particle, Scalar
from flowrl._target._base import AbstractTarget, Knowledge, as_arguments, no_samples
from flowrl._target._function import as_function, scalar


class AbstractValueTarget(AbstractTarget):
    """A target given by a scalar function of a particle; its gradient is taken by autodiff.

    A subclass writes `value` and `scaled_log_density`, and declares `needs_positive_temperature`; the rest is given here.

    Attributes:
        knows: "value" and "gradient".
        stochastic: False; a value that draws at random subclasses `AbstractTarget`.
        needs_positive_temperature: to be declared: True if the scaled log density is α × a log density, which is zero at α = 0; False if
            it is a value, whatever α.
    """

    knows: ClassVar[frozenset[Knowledge]] = frozenset({"value", "gradient"})
    stochastic: ClassVar[bool] = False

    @abc.abstractmethod
    def value(self, particle: Particle) -> Float[Array, ""]:
        """Give V(x), or log p(x).

        Args:
            particle: x, without the particle axis.
        """

    def gradient(self, particle: Particle, temperature: Scalar, *, key: Key | None) -> Particle:
        """Give ∇U(x, α) at one particle, by reverse-mode autodiff; NaN where U is not finite.

        Beyond the support of a law autodiff can be finite all the same (that of log x is, at x < 0).

        Args:
            particle: x, without the particle axis.
            temperature: α >= 0.
            key: unused, the target is deterministic.
        """
        name = f"{type(self).__name__}.scaled_log_density"
        log_density, gradient = jax.value_and_grad(
            lambda x: scalar(self.scaled_log_density(x, temperature, key=key), name)
        )(particle)
        return jax.tree.map(lambda leaf: jnp.where(jnp.isfinite(log_density), leaf, jnp.nan), gradient)

    def samples(self) -> NoReturn:
        """Refuse: a function gives no samples.

        Raises:
            TypeError: always.
        """
        no_samples(self)


class Boltzmann(AbstractValueTarget):
    """The law ∝ exp(V(x)/α) of a value V: a Q-function, a reward model, a fitness.

    V(x) = `value(*args, x)`, as `functools.partial(value, *args)` would. `args` and the leaves of `value` (if it is an
    Equinox module) travel as arrays, so new weights or states never recompile.

    Example:
        ```python
        import jax.numpy as jnp
        import flowrl

        def q(state, action):
            return -jnp.sum((action - state) ** 2)

        target = flowrl.Boltzmann(q, jnp.ones(2))
        ```

    Annealing: with V = log p the law is p^(1/α), flat where α is large. `Budget(temperature=schedule)` with an optax
    schedule that falls to 1 lets particles cross between modes before they settle in p. The repulsion of the particles
    grows with α while the drift ∇V does not; a `step_size` in proportion to 1/√α keeps the first steps in hand.

    ??? cite "Source"
        Haarnoja et al., *Reinforcement Learning with Deep Energy-Based Policies*, ICML 2017, eq. 3: the policy that
        maximises E[Q] + α entropy.
    """

    function: Callable[..., Any]
    args: tuple[Any, ...]
    needs_positive_temperature: ClassVar[bool] = False

    def __init__(self, value: Any, *args: Any):
        """Make the target.

        Args:
            value: function of `(*args, particle)` that returns one scalar. Use a named function or a module: a lambda
                made anew for each call recompiles. A distribution with a method `log_prob` has the value log p.
            args: leading arguments of `value`: states, prompts, masks; any PyTrees.

        Raises:
            TypeError: `value` is no function.
        """
        self.function = as_function(value, "value")
        self.args = as_arguments(args)

    def value(self, particle: Particle) -> Float[Array, ""]:
        """Give V(x).

        Args:
            particle: x, without the particle axis.
        """
        return scalar(self.function(*self.args, particle), "value")

    def scaled_log_density(self, particle: Particle, temperature: Scalar, *, key: Key | None) -> Float[Array, ""]:
        """Give U(x, α) = V(x), whatever α.

        Args:
            particle: x, without the particle axis.
            temperature: unused: the law gets colder because the entropy of the flow weighs less.
            key: unused, the target is deterministic.
        """
        del temperature, key
        return self.value(particle)


class Density(AbstractValueTarget):
    """The law p(x) itself, at every temperature α > 0: U = α log p.

    Distributions with a method `log_prob` over one particle (numpyro's, distrax', flowjax') are taken as they are, and
    so is a `logdensity_fn(position)` as blackjax asks for. A distribution with a batch shape gives a vector: make the
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
        """Make the target.

        Args:
            log_prob: function of `(*args, particle)` that returns log p up to a constant, one scalar; or an object
                with such a method `log_prob`. The method is taken where there is one, also if the object can be called.
                If the object is a PyTree, as the distributions of numpyro and every Equinox module are, new parameters
                of it do not recompile; any other is held as it is, and a new one recompiles.
            args: leading arguments of `log_prob`: data, hyperparameters; any PyTrees.

        Raises:
            TypeError: `log_prob` is neither.
        """
        self.function = as_function(log_prob, "log_prob")
        self.args = as_arguments(args)

    def value(self, particle: Particle) -> Float[Array, ""]:
        """Give log p(x).

        Args:
            particle: x, without the particle axis.
        """
        return scalar(self.function(*self.args, particle), "log_prob")

    def scaled_log_density(self, particle: Particle, temperature: Scalar, *, key: Key | None) -> Float[Array, ""]:
        """Give U(x, α) = α log p(x).

        Args:
            particle: x, without the particle axis.
            temperature: α > 0.
            key: unused, the target is deterministic.
        """
        del key
        value = self.value(particle)
        return temperature.astype(value.dtype) * value
