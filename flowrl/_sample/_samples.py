"""What `sample` returns."""

import importlib
import warnings
from typing import Any

import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from flowrl._budget import Budget
from flowrl._custom_types import Key, Particles
from flowrl._distribution import require
from flowrl._numpyro import NumpyroPosterior
from flowrl._sample._verdict import Verdict
from flowrl._transport import Transport


class Samples(eqx.Module):
    """Draws of a posterior, with what was chosen on the way; `print(samples)` gives a verdict on one screen.

    Attributes:
        draws: leaves (m, n, ...): m draws of n particles, each a chain, in the user's coordinates.
        verdict: whether they can be trusted.
        stats: arrays without a particle axis: `gradients` (of all particles together), `depth` (one after another),
            `acceptance`, `step_size`; `log_evidence`, `log_evidence_error` where the sampling was tempered.
        scale: the learned unit of length of each coordinate, with the structure of a particle.
        phases: the transports that were run, in order, and their budgets: `method(target, particles, budget, key=key)`
            runs one alone.
        posterior: the numpyro model, if the target was one.
    """

    draws: Particles
    verdict: Verdict
    stats: dict[str, Array]
    scale: Particles
    phases: tuple[tuple[Transport, Budget], ...]
    posterior: NumpyroPosterior | None = None

    def pooled(self) -> Particles:
        """Return all draws as one set, leaves (m n, ...)."""
        return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), self.draws)

    def constrained(self) -> dict[str, Array]:
        """Return the draws of a numpyro model by site, (n, m, ...): chains first, as in ArviZ.

        Raises:
            TypeError: the target was no numpyro model.
        """
        if self.posterior is None:
            raise TypeError("constrained() is for models of numpyro; here the draws are in your own coordinates.")
        m, n = jax.tree.leaves(self.draws)[0].shape[:2]
        sites = self.posterior.constrain(self.pooled())
        return {name: jnp.swapaxes(x.reshape(m, n, *x.shape[1:]), 0, 1) for name, x in sites.items()}

    def to_arviz(self) -> Any:
        """Return the draws as ArviZ's DataTree: a chain per particle, names from a numpyro model or a dict.

        Raises:
            ImportError: arviz-base is not installed (the extra `bayes`).
        """
        require("arviz_base", extra="bayes")
        arviz: Any = importlib.import_module("arviz_base")

        if self.posterior is not None:
            named = self.constrained()
        else:
            draws = self.draws if isinstance(self.draws, dict) else {"x": self.draws}
            named = {name: jnp.swapaxes(x, 0, 1) for name, x in draws.items()}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Found chain dimension to be longer")  # as it should be here
            return arviz.from_dict({"posterior": {name: np.asarray(x) for name, x in named.items()}})

    def thinned(self, count: int, *, key: Key) -> Particles:
        """Return some of the draws, chosen uniformly without replacement, leaves (count, ...).

        Args:
            count: how many, in [1, m n].
            key: randomness.
        """
        pooled = self.pooled()
        total = jax.tree.leaves(pooled)[0].shape[0]
        if not 1 <= count <= total:
            raise ValueError(f"count must be in [1, {total}], got {count}.")
        index = jax.random.choice(key, total, (count,), replace=False)
        return jax.tree.map(lambda leaf: leaf[index], pooled)

    def __str__(self) -> str:
        if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(self)):
            return repr(self)
        stats = {name: np.asarray(x) for name, x in self.stats.items()}
        if stats["gradients"].shape:
            return f"Samples of {stats['gradients'].size} posteriors\n  verdict  {self.verdict}"
        m, n = jax.tree.leaves(self.draws)[0].shape[:2]
        lines = [
            f"{m} draws of {n} particles",
            f"  spent    {int(stats['gradients']):,} gradients, {int(stats['depth']):,} one after another",
            f"  moves    acceptance {float(stats['acceptance']):.2f}, step size {float(stats['step_size']):.3g}",
        ]
        if "log_evidence" in stats:
            lines.append(
                f"  evidence log {float(stats['log_evidence']):.3f} +- {float(stats['log_evidence_error']):.3f}"
            )
        return "\n".join([*lines, f"  verdict  {self.verdict}"])
