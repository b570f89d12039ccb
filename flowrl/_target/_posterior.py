"""The posterior of a model with many data: exact, or with an unbiased gradient from a minibatch per step."""

from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, PyTree

from flowrl._custom_types import Key, Particle, Scalar
from flowrl._misc import numbers_to_array, varying_as
from flowrl._target._base import AbstractTarget
from flowrl._target._function import as_function, called, scalar

# Data summed at once per particle: it bounds the memory, and is enough for the matrix products to be large.
CHUNK = 1024


class Posterior(AbstractTarget):
    r"""The distribution $p(x) \prod_i p(\text{datum}_i \mid x)$ of a prior and a likelihood over many data.

    $$U(x, α) = α \Big[ \log p(x) + \frac{N}{B} \sum_{i \in \text{batch}} \log p(\text{datum}_i \mid x) \Big]$$

    With a `batch_size` B < N each step draws B data, with replacement, from the step's key, an unbiased estimate of the
    gradient. All particles see the same batch, so its noise moves them together; a step size that falls to zero removes
    it. `value` is always over all data, and computed in chunks, as is the exact gradient: memory does not grow with N.

    Attributes:
        log_prior: function of a particle.
        log_likelihood: function of a particle and one datum.
        data: leaves (N, ...).
        batch_size: B, or None for all data.

    Example:
        ```python
        import jax.numpy as jnp
        import flowrl


        def log_likelihood(x, datum):
            return -0.5 * (datum["y"] - datum["inputs"] @ x) ** 2


        data = {"inputs": jnp.ones((5000, 3)), "y": jnp.zeros(5000)}
        target = flowrl.Posterior(lambda x: -0.5 * jnp.sum(x**2), log_likelihood, data, batch_size=100)
        ```

    ??? cite "Source"
        Welling and Teh, *Bayesian Learning via Stochastic Gradient Langevin Dynamics*, ICML 2011, eq. 4: the estimate;
        with Stein's direction in Liu and Wang, NeurIPS 2016, section 3.2.
    """

    log_prior: Callable[..., Any]
    log_likelihood: Callable[..., Any]
    data: PyTree[Array]
    batch_size: int | None = eqx.field(static=True)
    knows: ClassVar[frozenset[str]] = frozenset({"value", "gradient"})
    needs_positive_temperature: ClassVar[bool] = True

    def __init__(self, log_prior: Any, log_likelihood: Callable[..., Any], data: Any, batch_size: Any = None):
        """Create the target.

        Args:
            log_prior: function of a particle that returns log p up to a constant, or a distribution with `log_prob`.
            log_likelihood: function of `(particle, datum)`, the datum one row of `data` in its structure; returns
                log p(datum | x), one scalar. Use named functions or modules: a new lambda recompiles.
            data: array (N, ...) or PyTree of such; N >= 1. New data of the same shape do not recompile.
            batch_size: data per step, a Python int from 1 to N; None, or N, for all of them and no randomness. An
                unbiased gradient is enough for flows that are linear in it (`SVGD`, `Langevin`, `Ascent`); `KSDDescent`
                and `Consensus` are biased by a batch.

        Raises:
            TypeError: an argument is of the wrong kind.
            ValueError: the leaves of `data` disagree about N, or are empty; a batch is larger than N.
        """
        self.log_prior = as_function(log_prior, "log_prior")
        if not callable(log_likelihood):
            raise TypeError(f"log_likelihood must be a function of (particle, datum), got {log_likelihood!r}.")
        self.log_likelihood = log_likelihood
        self.data = jax.tree.map(_array, numbers_to_array(data))
        size = _size(self.data)
        if batch_size is not None:
            if isinstance(batch_size, bool) or not isinstance(batch_size, int | np.integer):
                raise TypeError(f"batch_size must be a Python int or None, got {batch_size!r}.")
            if not 1 <= batch_size <= size:
                raise ValueError(f"batch_size must be from 1 to {size}, got {batch_size}; None takes all {size} data.")
        self.batch_size = None if batch_size is None or batch_size == size else int(batch_size)

    @property
    def stochastic(self) -> bool:
        """Whether each step draws a batch."""
        return self.batch_size is not None

    def gradient(self, particle: Particle, temperature: Scalar, *, key: Key | None) -> Particle:
        rows, weight = self._rows(key)
        log_prior, prior = jax.value_and_grad(self._prior)(particle)
        # Outside the prior's support autodiff can be finite all the same.
        prior = jax.tree.map(lambda p: jnp.where(jnp.isfinite(log_prior), p, jnp.nan), prior)
        data = _sum_in_chunks(lambda chunk: jax.grad(self._likelihood)(particle, chunk), rows, particle)
        return jax.tree.map(lambda p, d: temperature.astype(p.dtype) * (p + weight * d), prior, data)

    def scaled_log_density(self, particle: Particle, temperature: Scalar, *, key: Key | None) -> Float[Array, ""]:
        rows, weight = self._rows(key)
        data = _sum_in_chunks(lambda chunk: self._likelihood(particle, chunk), rows, particle)
        return temperature.astype(data.dtype) * (self._prior(particle) + weight * data)

    def value(self, particle: Particle) -> Float[Array, ""]:
        total = _sum_in_chunks(lambda chunk: self._likelihood(particle, chunk), self.data, particle)
        return self._prior(particle) + total

    def _prior(self, particle: Particle) -> Float[Array, ""]:
        out = called(self.log_prior, particle, name="log_prior", particle=particle)
        return scalar(out, "log_prior").astype(_dtype(particle))

    def _likelihood(self, particle: Particle, rows: PyTree[Array]) -> Float[Array, ""]:
        """Sum of the log likelihoods of these rows."""
        name = "log_likelihood of one datum"

        def log(row: PyTree[Array]) -> Float[Array, ""]:
            return scalar(called(self.log_likelihood, particle, row, name=name, particle=particle), name)

        return jnp.sum(jax.vmap(log)(rows).astype(_dtype(particle)))

    def _rows(self, key: Key | None) -> tuple[PyTree[Array], float]:
        """The data of this step, and how many each of them stands for."""
        if self.batch_size is None:
            return self.data, 1.0
        if key is None:
            raise ValueError("Posterior with a batch_size draws its data at random: pass key=jax.random.key(seed).")
        size = _size(self.data)
        batch = jr.randint(key, (self.batch_size,), 0, size)
        return jax.tree.map(lambda leaf: leaf[batch], self.data), size / self.batch_size


def _sum_in_chunks(
    total: Callable[[PyTree[Array]], PyTree[Array]], rows: PyTree[Array], particle: Particle
) -> PyTree[Array]:
    """Add up `total` over chunks of rows; reverse mode computes each chunk again instead of keeping all of them."""
    size = _size(rows)
    count = size // CHUNK
    if size <= CHUNK:
        return total(rows)
    once = jax.checkpoint(total)
    chunks = jax.tree.map(lambda x: x[: count * CHUNK].reshape(count, CHUNK, *x.shape[1:]), rows)
    rest = jax.tree.map(lambda x: x[count * CHUNK :], rows)

    def add(sums: PyTree[Array], chunk: PyTree[Array]) -> tuple[PyTree[Array], None]:
        return jax.tree.map(jnp.add, sums, once(chunk)), None

    if size > count * CHUNK:
        sums = once(rest)
    else:
        like = jax.eval_shape(total, jax.tree.map(lambda x: x[0], chunks))
        sums = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)
    return jax.lax.scan(add, varying_as(sums, rows, particle), chunks)[0]


def _dtype(particle: Particle) -> jnp.dtype:
    return jax.tree.leaves(particle)[0].dtype


def _array(leaf: Any) -> Array:
    try:
        return jnp.asarray(leaf)
    except TypeError as error:
        raise TypeError(f"data must hold arrays (N, ...), got {leaf!r}.") from error


def _size(data: PyTree[Array]) -> int:
    """N, the same for all leaves."""
    sizes: dict[str, int] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(data):
        name = "data" + jax.tree_util.keystr(path)
        if leaf.ndim == 0:
            raise ValueError(
                f"{name} is a scalar; expected a leading axis N, one row per datum. Constants belong into the "
                "functions: eqx.Partial(log_likelihood, ...) or a module."
            )
        sizes[name] = leaf.shape[0]
    if not sizes:
        raise ValueError("data has no array leaves; expected an array (N, ...) or a PyTree of such.")
    if len(set(sizes.values())) > 1:
        raise ValueError(f"the leaves of data disagree about the number of data N: {sizes}.")
    size = next(iter(sizes.values()))
    if size == 0:
        raise ValueError("data holds no datum (N = 0); for the prior alone use Density(log_prior).")
    return size
