"""Bayesian inverse problems, whose forward map is evaluated and never differentiated."""

from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from flowrl._custom_types import Key, Particle, Scalar
from flowrl._misc import concrete, numbers_to_array, real_array
from flowrl._target._base import AbstractTarget
from flowrl._target._function import third_party


class _Normal(eqx.Module):
    """The normal distribution of a PyTree, up to a constant."""

    mean: PyTree[Array]
    # Standard deviations (k,), or the lower Cholesky factor of the covariance (k, k).
    root: Array

    def whitened(self, x: PyTree[Array], name: str) -> Float[Array, " k"]:
        """Return C^(−1/2) (x − mean), independent standard normal numbers if x has this distribution."""
        _check_like(x, self.mean, name)
        flat = jax.flatten_util.ravel_pytree(x)[0]
        away = flat - jax.flatten_util.ravel_pytree(self.mean)[0].astype(flat.dtype)
        root = self.root.astype(flat.dtype)
        return away / root if root.ndim == 1 else jax.scipy.linalg.solve_triangular(root, away, lower=True)


class InverseProblem(AbstractTarget):
    r"""The posterior of x from data $y = G(x) + η$, $η \sim N(0, Γ)$, under the prior $x \sim N(m_0, C_0)$.

    $$\log p(x \mid y) = -\tfrac{1}{2} |Γ^{-1/2} (G(x) - y)|^2 - \tfrac{1}{2} |C_0^{-1/2} (x - m_0)|^2 + \text{const}$$

    The forward map G may be a black box: `EKS` and `EKI` evaluate it once per particle and step and never
    differentiate it, and once more at the end for the values. JAX must be able to trace it; a program outside of JAX
    is called by `jax.pure_callback(..., vmap_method="sequential")`. A result that is not finite freezes its particle.

    `Tilted(problem.log_prior, problem.log_likelihood)` is the same posterior for `KFRFlow`, which does not
    differentiate either. If G can be differentiated, both that and `Density(problem.value)` are targets of every flow
    with a gradient.

    Attributes:
        forward_map: G, a function of one particle.
        likelihood: N(y, Γ) as a distribution of G(x).
        prior: N(m0, C0).

    Example:
        ```python
        import jax.numpy as jnp
        import jax.random as jr
        import flowrl


        def rounded(x):  # a gradient of zero everywhere
            return jnp.round(100 * jnp.array([x[0] + x[1], x[0] * x[1]])) / 100


        problem = flowrl.InverseProblem(rounded, [3.0, 2.0], noise=0.1, prior_mean=[1.5, 0.5], prior_scale=0.5)
        prior = jnp.array([[1.5, 0.5]]) + 0.5 * jr.normal(jr.key(0), (100, 2))
        budget = flowrl.Budget(200, 0.05 * jnp.minimum(1, 0.02 * 1.05 ** jnp.arange(200.0)))
        solution = flowrl.transport(problem, prior, budget, flow=flowrl.EKS(), key=jr.key(1))
        assert jnp.abs(solution.particles.mean(axis=0) - jnp.array([2.0, 1.0])).max() < 0.2
        ```

    ??? cite "Source"
        Stuart, *Inverse problems: A Bayesian perspective*, Acta Numerica 19, 2010.
    """

    forward_map: Callable[..., Any]
    likelihood: _Normal
    prior: _Normal
    knows: ClassVar[frozenset[str]] = frozenset({"forward", "value"})
    needs_positive_temperature: ClassVar[bool] = True

    def __init__(self, forward_map: Callable[[Any], Any], data: Any, noise: Any, prior_mean: Any, prior_scale: Any):
        """Create the target.

        Args:
            forward_map: G: a function of one particle, or a module with arrays as leaves, that returns what the data
                are; any state of it goes along as `jax.tree_util.Partial(function, state)`. Use a named function: a
                new lambda recompiles.
            data: y, an array (m,), or a PyTree of arrays. New data do not recompile.
            noise: standard deviations of η in the units of the data, one number or what has their structure and
                shapes, > 0; or the covariance Γ (m, m), positive definite, of the data in one row.
            prior_mean: m0, an array (d,), or a PyTree of arrays, of the structure and shapes of one particle.
            prior_scale: standard deviations of the prior in the units of x, one number or what has the shapes of
                `prior_mean`, > 0; or the covariance C0 (d, d), positive definite, of a particle in one row.

        Raises:
            TypeError: `forward_map` is no function, or an argument holds no real numbers.
            ValueError: `forward_map` returns other shapes than the data have, a scale is not positive, a covariance not
                positive definite, or their shape is that of neither.
        """
        if isinstance(forward_map, type | AbstractTarget) or not callable(forward_map):
            raise TypeError(
                f"forward_map must be a function of one particle or a callable module, got {forward_map!r}."
            )
        self.forward_map = forward_map
        self.likelihood = _normal(("data", data), ("noise", noise))
        self.prior = _normal(("prior_mean", prior_mean), ("prior_scale", prior_scale))
        like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), self.prior.mean)
        with third_party():  # the particles may have another dtype than the prior's mean
            predicted = jax.eval_shape(forward_map, like)
        _check_like(predicted, self.likelihood.mean, "what forward_map returns for one particle", "the data")

    def forward(self, particle: Particle) -> PyTree[Array]:
        """Return G(x), with the structure and shapes of the data, in the dtype of the particle.

        Args:
            particle: x, without the particle axis.
        """
        _check_like(particle, self.prior.mean, "one particle")
        dtype = jax.tree.leaves(particle)[0].dtype
        return jax.tree.map(lambda leaf: jnp.asarray(leaf).astype(dtype), self.forward_map(particle))

    def misfit(self, predicted: PyTree[Array]) -> Float[Array, " m"]:
        """Return Γ^(−1/2) (G(x) − y), whose square is −2 log likelihood.

        Args:
            predicted: G(x) of one particle, as `forward` returns it.
        """
        return self.likelihood.whitened(predicted, "what forward_map returns for one particle")

    def prior_misfit(self, particle: Particle) -> Float[Array, " d"]:
        """Return C0^(−1/2) (x − m0), whose square is −2 log prior.

        Args:
            particle: x, without the particle axis.
        """
        return self.prior.whitened(particle, "one particle")

    def log_likelihood(self, particle: Particle) -> Scalar:
        """Return log p(y | x) up to a constant.

        Args:
            particle: x, without the particle axis.
        """
        return -0.5 * jnp.sum(self.misfit(self.forward(particle)) ** 2)

    def log_prior(self, particle: Particle) -> Scalar:
        """Return log p(x) up to a constant.

        Args:
            particle: x, without the particle axis.
        """
        return -0.5 * jnp.sum(self.prior_misfit(particle) ** 2)

    def value(self, particle: Particle) -> Float[Array, ""]:
        return self.log_likelihood(particle) + self.log_prior(particle)

    def scaled_log_density(self, particle: Particle, temperature: Scalar, *, key: Key | None) -> Float[Array, ""]:
        del key
        value = self.value(particle)
        return temperature.astype(value.dtype) * value


def _normal(mean: tuple[str, Any], scale: tuple[str, Any]) -> _Normal:
    """Return the distribution of a mean and of standard deviations or a covariance, each given with its name."""
    name, given = mean
    leaves = jax.tree.map(lambda leaf: real_array(name, leaf, np.isfinite, "finite"), numbers_to_array(given))
    if not jax.tree.leaves(leaves):
        raise ValueError(f"{name} has no array leaves; expected an array or a PyTree of arrays.")
    flat, _ = jax.flatten_util.ravel_pytree(leaves)
    return _Normal(leaves, _root(scale[0], numbers_to_array(scale[1]), leaves, name, flat.size))


def _root(name: str, scale: Any, mean: PyTree[Array], mean_name: str, size: int) -> Array:
    shapes, wanted = _shapes(scale), _shapes(mean)
    if shapes == (size, size) and shapes != wanted:
        return _cholesky(name, real_array(name, scale, np.isfinite, "finite"))
    if shapes == ():
        scale = jax.tree.map(lambda leaf: jnp.broadcast_to(jnp.asarray(scale), leaf.shape), mean)
    elif shapes != wanted:
        raise ValueError(
            f"{name} has shape {shapes}; expected one number, standard deviations {wanted} as {mean_name} has, or a "
            f"covariance {(size, size)}."
        )
    positive = lambda leaf: real_array(name, leaf, lambda x: (x > 0) & (x < np.inf), "> 0 and finite")
    return jax.flatten_util.ravel_pytree(jax.tree.map(positive, scale))[0]


def _cholesky(name: str, covariance: Float[Array, "k k"]) -> Float[Array, "k k"]:
    known = concrete(covariance)
    if known is not None:
        largest = np.abs(known).max(initial=0)
        if np.abs(known - known.T).max(initial=0) > 1e-5 * largest:
            raise ValueError(f"{name} is a covariance, which must be symmetric.")
        # Within rounding of singular: what its factor says of the narrowest direction would be noise.
        least = np.linalg.eigvalsh(known)[0] if known.size else 0
        if not least > known.shape[0] * np.finfo(known.dtype).eps * largest:
            raise ValueError(
                f"{name} is a covariance, which must be positive definite; its smallest eigenvalue is {least:.3g}."
            )
    return jnp.linalg.cholesky(covariance)


def _shapes(tree: Any) -> Any:
    return jax.tree.map(np.shape, tree)


def _check_like(got: PyTree[Any], want: PyTree[Array], name: str, other: str = "") -> None:
    """Refuse a PyTree that differs from another in structure or shapes."""
    if _shapes(got) != _shapes(want):
        raise ValueError(
            f"{name} has shape {_shapes(got)}; expected {_shapes(want)}{f', that of {other}' if other else ''}."
        )
