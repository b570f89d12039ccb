"""A reference distribution tilted by a value: U(x, α) = V(x) + α log μ(x), a distribution ∝ μ exp(V/α)."""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from flowrl._custom_types import Key, Particle, Scalar
from flowrl._target._base import AbstractTarget
from flowrl._target._value import Boltzmann, Density


class _Multiple(AbstractTarget):
    """The value β V."""

    value_target: AbstractTarget
    factor: Scalar
    needs_positive_temperature: ClassVar[bool] = False

    def __init__(self, value_target: AbstractTarget, factor: Scalar):
        self.value_target, self.factor = value_target, factor

    @property
    def knows(self) -> frozenset[str]:
        """What V knows."""
        return self.value_target.knows

    @property
    def stochastic(self) -> bool:
        """Whether V is."""
        return self.value_target.stochastic

    def gradient(self, particle: Particle, temperature: Scalar, *, key: Key | None) -> Particle:
        gradient = self.value_target.gradient(particle, temperature, key=key)
        return jax.tree.map(lambda leaf: self.factor.astype(leaf.dtype) * leaf, gradient)

    def value_and_gradient(
        self, particle: Particle, temperature: Scalar, *, key: Key | None
    ) -> tuple[Float[Array, ""], Particle]:
        answer = self.value_target.value_and_gradient(particle, temperature, key=key)
        return jax.tree.map(lambda leaf: self.factor.astype(leaf.dtype) * leaf, answer)

    def scaled_log_density(self, particle: Particle, temperature: Scalar, *, key: Key | None) -> Float[Array, ""]:
        value = self.value_target.scaled_log_density(particle, temperature, key=key)
        return self.factor.astype(value.dtype) * value

    def value(self, particle: Particle) -> Float[Array, ""]:
        return self.factor * self.value_target.value(particle)


def bridge(log_start: Any, log_prob: Any) -> "Tilted":
    """Create the target p written as a tilt of another density, so that `Tempered` can bridge the two.

    Args:
        log_start: log density of the start, normalised if the evidence is wanted: a function of a particle or a
            distribution with `log_prob`.
        log_prob: log p, up to a constant, in the same form.

    Returns:
        `Tilted(log_start, log_prob − log_start)`: p itself at α = 1.

    Example:
        ```python
        import jax.numpy as jnp
        import flowrl

        target = flowrl.bridge(lambda x: -0.5 * jnp.sum(x**2), lambda x: -jnp.sum((x - 1) ** 4))
        ```
    """
    start, end = Density(log_start), Density(log_prob)
    return Tilted(start, Boltzmann(_Difference(start, end)))


class _Difference(eqx.Module):
    """The function log p − log μ."""

    start: Density
    end: Density

    def __call__(self, particle: Particle) -> Float[Array, ""]:
        return self.end.value(particle) - self.start.value(particle)


class Tilted(AbstractTarget):
    r"""The distribution $\propto μ(x) \exp(V(x)/α)$: a reference μ tilted by a value V, with $U = V + α \log μ$.

    It maximises $E_q[V] - α\,\mathrm{KL}(q \,|\, μ)$: the regularised policy of offline RL and of preference alignment.
    With a prior as reference and a log likelihood as value it is the posterior whose likelihood is tempered to the
    power 1/α; a temperature schedule that ends at 1 anneals from the prior to the posterior.

    At α = 0 it is V alone. Flows without a temperature (`Ascent`) see it at α = 1. The part α log μ of the drift grows
    with α, so a large α needs a small step.

    Attributes:
        reference: the target whose scaled log density is α log μ.
        tilt: the target whose scaled log density is V; its `value` is what particles are ranked by.

    Example:
        ```python
        import jax.numpy as jnp
        import flowrl

        target = flowrl.Tilted(lambda a: -0.5 * jnp.sum(a**2), lambda a: -jnp.sum((a - 1.0) ** 2))
        ```

    ??? cite "Source"
        Peters, Mülling and Altün, *Relative Entropy Policy Search*, AAAI 2010: the optimum of a value under a bound on
        the KL divergence to a reference.
    """

    reference: AbstractTarget
    tilt: AbstractTarget
    needs_positive_temperature: ClassVar[bool] = False

    def __init__(self, log_reference: Any, value: Any):
        """Create the target.

        Args:
            log_reference: log μ: a function of a particle or a distribution with `log_prob` (taken as `Density`), or a
                target whose scaled log density is α log μ: `Density` (to give arguments), `Score`, `Posterior`.
            value: V: a function of a particle (taken as `Boltzmann`), or a target whose scaled log density is V
                whatever α: `Boltzmann`, `ValueGradient`.

        Raises:
            TypeError: a target of the wrong kind.
        """
        self.reference = log_reference if isinstance(log_reference, AbstractTarget) else Density(log_reference)
        self.tilt = value if isinstance(value, AbstractTarget) else Boltzmann(value)
        for name, target in (("log_reference", self.reference), ("value", self.tilt)):
            if "gradient" not in target.knows:
                raise TypeError(f"{name} is {type(target).__name__}, which has no gradient to add to the other's.")
        if not self.reference.needs_positive_temperature:
            raise TypeError(
                f"log_reference is {type(self.reference).__name__}, whose scaled log density is not α log μ; "
                "expected log μ as a function, or Density, Score or Posterior. The value comes second: "
                "Tilted(log_reference, value)."
            )
        if self.tilt.needs_positive_temperature:
            raise TypeError(
                f"value is {type(self.tilt).__name__}, whose scaled log density is α log p and would vanish at "
                "α = 0; expected V as a function, Boltzmann(value) or ValueGradient(...). To temper a log likelihood "
                "give it as the function: Tilted(log_prior, log_likelihood)."
            )

    @property
    def knows(self) -> frozenset[str]:
        """The gradient; the value if both parts know theirs; the tilt if that knows its own."""
        tilt = {"log_tilt"} if "value" in self.tilt.knows else set()
        return (self.reference.knows & self.tilt.knows & {"gradient", "value"}) | tilt

    @property
    def stochastic(self) -> bool:
        """Whether one of the parts is."""
        return self.reference.stochastic or self.tilt.stochastic

    def gradient(self, particle: Particle, temperature: Scalar, *, key: Key | None) -> Particle:
        first, second = self._keys(key)
        gradient = self.reference.gradient(particle, temperature, key=first)
        return jax.tree.map(jnp.add, self.tilt.gradient(particle, temperature, key=second), gradient)

    def value_and_gradient(
        self, particle: Particle, temperature: Scalar, *, key: Key | None
    ) -> tuple[Float[Array, ""], Particle]:
        first, second = self._keys(key)
        answer = self.reference.value_and_gradient(particle, temperature, key=first)
        return jax.tree.map(jnp.add, self.tilt.value_and_gradient(particle, temperature, key=second), answer)

    def scaled_log_density(self, particle: Particle, temperature: Scalar, *, key: Key | None) -> Float[Array, ""]:
        first, second = self._keys(key)
        log_density = self.reference.scaled_log_density(particle, temperature, key=first)
        return self.tilt.scaled_log_density(particle, temperature, key=second) + log_density

    def value(self, particle: Particle) -> Float[Array, ""]:
        return self.tilt.value(particle)

    def log_tilt(self, particle: Particle) -> Float[Array, ""]:
        """Return V(x), by which exp(V/α) tilts the reference.

        Args:
            particle: x, without the particle axis.
        """
        return self.tilt.value(particle)

    def at_power(self, power: Scalar) -> "Tilted":
        """Return the distribution ∝ μ exp(β V): its scaled log density at α = 1 is β V + log μ.

        Args:
            power: β >= 0.
        """
        return Tilted(self.reference, _Multiple(self.tilt, power))

    def _keys(self, key: Key | None) -> tuple[Key | None, Key | None]:
        """Return a key for each part that is stochastic; independent ones where both are."""
        if key is not None and self.reference.stochastic and self.tilt.stochastic:
            first, second = jr.split(key)
            return first, second
        return (key if self.reference.stochastic else None), (key if self.tilt.stochastic else None)
