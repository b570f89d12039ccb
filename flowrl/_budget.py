"""The transport budget: how far particles may travel. It is the regulariser.

A flow takes `steps` L steps of size ε (`step_size`) at temperature α, so the time spent is Σ ε. A cap D on the
displacement turns the budget into a certificate: no particle ends further than D from where it started.
"""

import math
from typing import Any

import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, PyTree

from flowrl._custom_types import Count, Schedule
from flowrl._misc import concrete, number, numbers_to_array, real_array


class Budget(eqx.Module):
    """How far particles may travel.

    Numbers become arrays on construction, so changing them never recompiles; only a Python-int `steps` is static.

    Attributes:
        step_size: ε, an array `()` or `(steps,)`; None where the method chooses it.
        temperature: α, an array `()` or `(steps,)`, or None.
        scale: per-coordinate unit of length, or None.
        max_steps: static bound on a traced `steps`, or None.

    Example:
        ```python
        import jax.numpy as jnp
        import flowrl

        target, start = flowrl.Boltzmann(lambda x: -jnp.sum(x**2)), jnp.full((10, 2), 3.0)
        capped = flowrl.Budget(100, 0.1, temperature=0.0, max_displacement=1.0)
        assert flowrl.transport(target, start, capped).stats["displacement_max"] <= 1
        traced = flowrl.Budget(jnp.array(5), 0.1, max_steps=20)  # one compiled program for every L <= 20
        assert int(flowrl.transport(target, start, traced).stats["steps"]) == 5
        ```
    """

    step_size: Array | None
    temperature: Array | None
    max_displacement: Array | None
    scale: PyTree[Array] | None
    tolerance: Array | None
    max_mmd: Array | None
    mmd_sigma: Array | None
    check_every: int = eqx.field(static=True)
    max_steps: int | None = eqx.field(static=True)
    # Two fields, so that a Python int stays static under any transformation, not under Equinox's alone.
    _static_steps: int | None = eqx.field(static=True)
    _traced_steps: Count | None

    def __init__(
        self,
        steps: int | np.integer | Count,
        step_size: ArrayLike | Schedule | None = 0.1,
        temperature: ArrayLike | Schedule | None = None,
        *,
        max_displacement: ArrayLike | None = None,
        scale: PyTree[ArrayLike] | None = None,
        tolerance: ArrayLike | None = None,
        max_mmd: ArrayLike | None = None,
        mmd_sigma: ArrayLike | None = None,
        check_every: int = 1,
        max_steps: int | None = None,
    ):
        """Create a budget.

        Args:
            steps: number of steps L >= 0. A Python int gives one program per L, differentiable in reverse mode; an
                integer array gives one program for all L <= `max_steps`, without reverse mode.
            step_size: ε >= 0; a number, an array `(steps,)`, or a schedule `l -> ε` as in optax. None only for methods
                that choose it: `Metropolis`, `Coin`, flows in unit time.
            temperature: α >= 0 in the units of the value; a number, an array `(steps,)`, or a schedule. None means 1
                for flows with an entropy; flows without one refuse it. For `Density` the drift grows with α, so
                annealing from a large α needs `step_size` in proportion to 1/α.
            max_displacement: cap D >= 0 on the Euclidean distance of every particle to its start, in units of `scale`.
                After each step a particle beyond it is pulled back on the segment to its start.
            scale: unit of length of each coordinate, > 0: a number, an array that broadcasts against one particle, or a
                PyTree of such. The flow runs in z = x / scale, so an Euler step moves x by scale² ε ∇V, an Adam step by
                scale · ε. See `flowrl.spread`. None means 1.
            tolerance: speed >= 0 at which the set counts as at rest: it stops once the root mean square over particles
                of
                |Δx| / ε is at most this, in units of `scale` per unit time. Refused for diffusions and jumps. Random
                velocities and gradients count as they were drawn.
            max_mmd: cap >= 0 on the maximum mean discrepancy between the set and its start, Gaussian kernel, in units
                of `scale`. A set found beyond it goes back to where the last check left it, and stops. In float32 a cap
                below about 1e-3 is decided by rounding, on the safe side.
            mmd_sigma: bandwidth σ > 0 of that kernel, in units of `scale`; None for the median rule at the start.
            check_every: steps >= 1 between two checks of `tolerance` and `max_mmd`; `max_mmd` is also checked at the
                end. Each set stops for itself; under `jax.vmap` the slowest sets the time.
            max_steps: bound on `steps`, required when `steps` is an array; larger counts stop there with the result
                `max_steps_reached`.

        Raises:
            TypeError: `steps` is not an integer.
            ValueError: a concrete number is out of its range, or a shape does not fit `steps`.
        """
        if isinstance(steps, bool | float) or not isinstance(steps, int | np.integer | np.ndarray | jax.Array):
            raise TypeError(f"steps must be a Python int or an integer array, got {steps!r}.")
        if isinstance(steps, int | np.integer):
            steps = int(steps)
            self._static_steps, self._traced_steps = steps, None
            if steps < 0:
                raise ValueError(f"steps must be >= 0, got {steps}.")
            if max_steps is not None:
                raise ValueError("max_steps only bounds an array of steps; with a Python-int steps leave it out.")
            length = steps
        else:
            steps = jnp.asarray(steps)
            if not jnp.issubdtype(steps.dtype, jnp.integer) or steps.ndim != 0:
                raise TypeError(f"steps must be an integer scalar, got {steps.dtype}{list(steps.shape)}.")
            if max_steps is not None and not isinstance(max_steps, int | np.integer):
                raise TypeError(f"max_steps must be a Python int, got {max_steps!r}.")
            if max_steps is None or max_steps < 0:
                raise ValueError("steps is an array, so its bound is needed: Budget(steps, ..., max_steps=10).")
            value = concrete(steps)
            if value is not None and not 0 <= int(value) <= max_steps:
                raise ValueError(f"steps must be in [0, max_steps={max_steps}], got {int(value)}.")
            length = max_steps
            self._static_steps, self._traced_steps = None, steps
        self.max_steps = max_steps
        self.step_size = None if step_size is None else _per_step("step_size", step_size, length)
        self.temperature = None if temperature is None else _per_step("temperature", temperature, length)
        self.max_displacement = _cap("max_displacement", max_displacement)
        self.scale = None if scale is None else _scale(scale)
        self.tolerance = _cap("tolerance", tolerance)
        self.max_mmd = _cap("max_mmd", max_mmd)
        if mmd_sigma is not None and max_mmd is None:
            raise ValueError("mmd_sigma is the bandwidth of the cap max_mmd; give that too, or leave it out.")
        self.mmd_sigma = _cap("mmd_sigma", mmd_sigma, positive=True)
        if isinstance(check_every, bool) or not isinstance(check_every, int | np.integer) or check_every < 1:
            raise ValueError(f"check_every must be a Python int >= 1, got {check_every!r}.")
        if check_every > 1 and tolerance is None and max_mmd is None:
            raise ValueError(
                "check_every says how often tolerance and max_mmd are looked at; give one, or leave it out."
            )
        self.check_every = int(check_every)

    @property
    def steps(self) -> int | Count:
        """Number of steps L: a Python int, or an integer array."""
        return self._static_steps if self._traced_steps is None else self._traced_steps  # pyright: ignore[reportReturnType]

    @property
    def bound(self) -> int:
        """The static number of steps: `steps` if it is a Python int, else `max_steps`."""
        return self.max_steps if self._static_steps is None else self._static_steps  # pyright: ignore[reportReturnType]

    def rescaled(self, scale: PyTree[ArrayLike]) -> "Budget":
        """Return the same numbers in another unit of length.

        Args:
            scale: the new `scale`, e.g. `flowrl.spread(samples)`; > 0.
        """
        return eqx.tree_at(lambda budget: budget.scale, self, _scale(scale), is_leaf=lambda x: x is None)

    def with_steps(self, steps: int | Count, step_size: ArrayLike | Schedule | None = None) -> "Budget":
        """Return the same budget at another number of steps, and at another step size if one is given.

        Args:
            steps: L >= 0; an integer array needs the budget's own `max_steps`.
            step_size: ε >= 0, or None to keep it.

        Raises:
            ValueError: a schedule of this budget, an array `(steps,)`, does not fit the new number of steps.
        """
        return Budget(
            steps,
            self.step_size if step_size is None else step_size,
            self.temperature,
            max_displacement=self.max_displacement,
            scale=self.scale,
            tolerance=self.tolerance,
            max_mmd=self.max_mmd,
            mmd_sigma=self.mmd_sigma,
            check_every=self.check_every,
            max_steps=None if isinstance(steps, int | np.integer) else self.max_steps,
        )

    def valid(self) -> Bool[Array, ""]:
        """Whether all numbers are in range; for budgets whose numbers were traced when they were made."""
        checks = [jnp.all(jnp.asarray(self.steps) >= 0)]
        if self.step_size is not None:
            checks.append(jnp.all((self.step_size >= 0) & jnp.isfinite(self.step_size)))
        if self.temperature is not None:
            checks.append(jnp.all((self.temperature >= 0) & jnp.isfinite(self.temperature)))
        if self.max_displacement is not None:
            checks.append(jnp.all(self.max_displacement >= 0))
        checks += [jnp.all(cap >= 0) for cap in (self.tolerance, self.max_mmd) if cap is not None]
        checks += [] if self.mmd_sigma is None else [jnp.all((self.mmd_sigma > 0) & jnp.isfinite(self.mmd_sigma))]
        checks += [jnp.all((leaf > 0) & jnp.isfinite(leaf)) for leaf in jax.tree.leaves(self.scale)]
        return jnp.all(jnp.stack(checks))


def _cap(name: str, x: Any, *, positive: bool = False) -> Array | None:
    if x is None:
        return None
    return number(name, x, lambda value: value > 0 if positive else value >= 0, "> 0" if positive else ">= 0")


def _per_step(name: str, x: Any, length: int) -> Array:
    if callable(x):
        # One evaluation per step keeps any Python callable usable, jitted or not.
        try:
            x = [x(step) for step in range(length)]
        except TypeError as error:
            raise TypeError(
                f"{name} is a schedule that cannot be called with the number of a step, {x!r}: {error}"
            ) from error
        x = np.asarray(x) if not any(isinstance(leaf, jax.core.Tracer) for leaf in x) else jnp.stack(x)
    array = real_array(name, x, lambda value: (value >= 0) & (value < np.inf), ">= 0 and finite")
    if array.ndim > 1 or (array.ndim == 1 and array.shape[0] != length):
        raise ValueError(f"{name} must be a number or have shape ({length},), one entry per step; got {array.shape}.")
    return array if array.size else jnp.zeros((), array.dtype)


def _scale(scale: PyTree[ArrayLike]) -> PyTree[Array]:
    def unit(leaf: Any) -> Array:
        return real_array("scale", leaf, lambda value: (value > 0) & (value < np.inf), "> 0 and finite")

    return jax.tree.map(unit, numbers_to_array(scale))


def spread(samples: ArrayLike, *, floor: float = 1e-3) -> Array:
    r"""Measure the within-state spread of a reference: the unit in which a budget is best stated.

    The root mean square over states of the standard deviation over particles, per coordinate:
    $s_c = \sqrt{\operatorname{mean}_b \operatorname{var}_i x_{bic}}$.

    Args:
        samples: reference samples `(..., n, d)`; leading axes are states, at least one, `n >= 2` samples per state.
        floor: > 0, lower bound of the result in the unit of the samples, for coordinates that hardly vary.

    Returns:
        Spread per coordinate `(d,)`, to be used as `Budget(..., scale=spread(samples))`.

    Raises:
        ValueError: fewer than two axes, no state, fewer than two samples per state, or `floor` not positive.
    """
    array = jnp.asarray(samples)
    if array.ndim < 2 or array.shape[-2] < 2:
        raise ValueError(f"samples must have shape (..., n, d) with n >= 2 samples per state, got {array.shape}.")
    if 0 in array.shape[:-2]:
        raise ValueError(f"samples of shape {array.shape} hold no state, so there is no spread to measure.")
    if not floor > 0:
        raise ValueError(f"floor must be > 0, got {floor}.")
    variance = jnp.var(array, axis=-2).reshape(math.prod(array.shape[:-2]), array.shape[-1]).mean(axis=0)
    return jnp.maximum(jnp.sqrt(variance), jnp.asarray(floor, variance.dtype))
