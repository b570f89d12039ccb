"""What products of fewer digits do to SVGD: the error of one direction, and where particles come to rest."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rounds import append

import flowrl

# As `jax.default_matmul_precision` has them; a machine may take one for another, or refuse it.
SETTINGS = ("float32", "default", "tensorfloat32", "bfloat16", "BF16_BF16_F32")
NARROW = 0.05
TARGETS = {"N(0, I)": 1.0, f"one deviation of {NARROW}": NARROW}


def _deviations(d, first, dtype):
    return jnp.ones(d, dtype).at[0].set(first)


def direction(x, first):
    """Give flowrl's Stein direction toward a normal law at the median bandwidth."""
    return flowrl.RBF().stein(
        x, -x / _deviations(x.shape[1], first, x.dtype) ** 2, jnp.ones(len(x), bool), jnp.ones(())
    )


def rest(x, first, steps):
    """Give the particles after many steps of Adagrad."""
    target = flowrl.Density(lambda x: -0.5 * jnp.sum((x / _deviations(x.shape[0], first, x.dtype)) ** 2))
    solver = flowrl.Optax(optax.adagrad(1.0))
    return flowrl.transport(target, x, flowrl.Budget(steps, 0.3), flow=flowrl.SVGD(), solver=solver).particles


def precision(steps=2000):
    """Measure every setting on two targets, in two dimensions."""
    rows = []
    for name, first in TARGETS.items():
        for n, d in ((200, 10), (200, 50)):
            start = np.random.default_rng(0).normal(size=(n, d))
            with jax.enable_x64(True):
                exact = np.asarray(direction(jnp.asarray(start), first))
            for setting in SETTINGS:
                x = jnp.asarray(start, jnp.float32)
                try:
                    with jax.default_matmul_precision(setting):
                        wrong = np.abs(np.asarray(direction(x, first)) - exact).max() / np.abs(exact).max()
                        end = np.asarray(rest(x, first, steps), float)
                except jax.errors.JaxRuntimeError:
                    continue  # this machine has no such products
                ratio = end.var(0) / np.asarray(_deviations(d, first, float)) ** 2
                row = {"case": setting, "target": name, "N": n, "d": d, "error": f"{wrong:.1e}"}
                rows.append(row | {"variance": round(float(ratio.mean()), 3), "narrowest": round(float(ratio[0]), 3)})
    append("precision_flow", rows)
