"""What products of fewer digits do to SVGD: the error of one direction, and where particles come to rest."""

import jax
import jax.numpy as jnp
import numpy as np
from rounds import append


def _float64(a, b):
    return jnp.asarray(a, jnp.float64) @ jnp.asarray(b, jnp.float64)


def _rounded(a, b):
    """Multiply bfloat16 factors with float32 sums."""
    near = lambda x: x.astype(jnp.bfloat16).astype(jnp.float32)  # noqa: E731
    return _set("float32")[0](near(a), near(b))


def _set(precision):
    def product(a, b):
        with jax.default_matmul_precision(precision):
            return a @ b

    return product, product


PRODUCTS = {
    "`'float32'`": _set("float32"),
    "the default here": (jnp.matmul, jnp.matmul),
    "`'tensorfloat32'` here": _set("tensorfloat32"),
    "`'bfloat16'` here": _set("bfloat16"),
    "both products rounded to bfloat16": (_rounded, _rounded),
    "distances in float32, sums rounded to bfloat16": (_set("float32")[0], _rounded),
}


def direction(x, products):
    """Return the Stein direction toward N(0, I) at the median bandwidth."""
    between, summed = products
    lengths = jnp.sum(x * x, 1)
    squared = jnp.maximum(lengths[:, None] + lengths[None, :] - 2 * between(x, x.T), 0)
    variance = jnp.median(squared)
    kernel = jnp.exp(-squared / (2 * variance))
    ones = jnp.ones((x.shape[0], 1), x.dtype)
    sums = summed(kernel, jnp.concatenate([-x - x / variance, ones], 1))
    return (sums[:, :-1] + sums[:, -1:] * x / variance) / x.shape[0]


def precision(steps=400):
    """Measure every way of multiplying in two dimensions."""
    rows = []
    for n, d in ((200, 10), (200, 50)):
        start = np.random.default_rng(0).normal(size=(n, d))
        with jax.enable_x64(True):
            exact = np.asarray(direction(jnp.asarray(start), (_float64, _float64)))
        for name, products in PRODUCTS.items():
            x = jnp.asarray(start, jnp.float32)
            wrong = np.abs(np.asarray(direction(x, products)) - exact).max() / np.abs(exact).max()
            moved = jax.jit(
                lambda x, products=products: jax.lax.fori_loop(
                    0, steps, lambda _, y: y + 0.5 * direction(y, products), x
                )
            )
            end = np.asarray(moved(2 * x), float)
            row = {
                "case": name,
                "N": n,
                "d": d,
                "error": f"{wrong:.1e}",
                "variance": round(float(end.var(0).mean()), 3),
            }
            rows.append(row | {"mean": f"{np.abs(end.mean(0)).max():.1e}"})
    append("precision", rows)
