"""Whether draws can be trusted: statistics with standard errors over particles, and one sentence of them."""

from typing import Any

import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from flowrl._custom_types import Scalar

Draws = Float[Array, "m n d"]

#: Two-sided normal quantile for one false alarm in a thousand, before it is divided among all tests.
_FALSE_ALARM = 1e-3
#: What is significant is not a fault unless it is also this large: of a standard deviation, and of the number 1.
_DRIFT, _UNBALANCE = 0.15, 0.15
_ERROR = 0.1  # standard error of a mean over its standard deviation: b² = 0.01
# Share of the variance that lies between particles. At a half a particle forgets where it was within a third of the
# draws, and the adaptation, which by default is as long, takes it nearly three such times away from its start.
_STUCK = 0.5
_DIVERGENT = 0.01  # share of moves: above it in nearly all runs on funnels, and seldom elsewhere
_FEWEST = 8
_LOST = 0.5  # share of moves that diverge at no neck of a funnel
_REFUSED = 0.01  # acceptance: of what is asked for, 0.9, nothing is left
_FAR = 100.0  # equipartition of a set whose distance from the mode is ten times its width
_UNPULLED = 0.05  # equipartition of a flat direction is 0


class Verdict(eqx.Module):
    r"""Whether draws are those of the target, by what can be seen of them; `print` gives one sentence.

    All particles are chains of their own, so every statistic has a standard error over particles. Coordinates are the
    unconstrained ones; a statistic is that of the worst coordinate.

    It says *not arrived* where one of them is wrong or where a moment is not known to 0.1 standard deviations, *cannot
    tell* where the draws may be right but cannot show it, and otherwise *arrived*. What it cannot see: a mode in which
    no particle ever was.

    Attributes:
        arrived: nothing is wrong, and nothing stands in the way of seeing it: there are enough particles, which forget
            their places, and few moves diverge.
        wrong: the draws have not arrived. Where they have neither arrived nor are wrong, it cannot tell.
        error: the largest standard error of a mean, of x and of x², in standard deviations; of particles that were
            tempered those of one ancestor count as dependent.
        drift: the difference between the second half of the draws and the first, of x or of x², that is largest by z,
            in standard deviations.
        drift_z: the drift over its standard error.
        equipartition: the value of $E[-(x_k - \bar x_k) ∂_k \log p]$ furthest from 1, by z: below 1 the particles are
            too narrow, above 1 too wide.
        equipartition_z: its difference from 1 over its standard error.
        score: $E[∂_k \log p]$ furthest from 0, by z, times the standard deviation of x.
        score_z: the score over its standard error.
        stuck: the largest share of the variance of a coordinate that lies between particles.
        acceptance: mean probability of acceptance.
        divergent: share of moves that lost more than 10 in log density: at a place too narrow for the step size.
        frozen: share of particles that are frozen.
        threshold: z beyond which a deviation is significant.
        tempered: the particles were divided among modes by tempering, so that `stuck` is no fault.
    """

    arrived: Bool[Array, ""]
    wrong: Bool[Array, ""]
    error: Scalar
    drift: Scalar
    drift_z: Scalar
    equipartition: Scalar
    equipartition_z: Scalar
    score: Scalar
    score_z: Scalar
    stuck: Scalar
    acceptance: Scalar
    divergent: Scalar
    frozen: Scalar
    threshold: Scalar
    tempered: bool = eqx.field(static=True)

    def __str__(self) -> str:
        if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(self)):
            return repr(self)
        if np.shape(self.arrived):
            return f"{int(np.sum(self.arrived))} of {np.size(self.arrived)} sets arrived"
        return _sentence(self)


def judge(
    draws: Draws,
    places: Float[Array, "k n d"],
    gradients: Float[Array, "k n d"],
    acceptance: Any,
    divergent: Any,
    frozen: Any,
    *,
    origin: Int[Array, " n"] | None,
) -> Verdict:
    """Return the verdict on draws of n particles at m steps.

    Args:
        draws: unconstrained coordinates (m, n, d), m >= 2.
        places: some of the draws (k, n, d).
        gradients: ∇ log p there, (k, n, d).
        acceptance: mean probability of acceptance.
        divergent: share of moves that diverged.
        frozen: share of particles that are frozen.
        origin: of particles that were divided among modes by resampling, so that none need cross by itself, which of
            the first ones each descends from (n,); None if they were not.
    """
    tempered = origin is not None
    m, n, d = draws.shape
    dtype = draws.dtype
    tiny = jnp.finfo(dtype).tiny
    mean = jnp.mean(draws, axis=(0, 1), keepdims=True)
    centred = draws - mean
    deviation = jnp.sqrt(jnp.maximum(jnp.mean(centred**2, axis=(0, 1), keepdims=True), tiny))
    standard = centred / deviation
    moments = jnp.concatenate([standard, standard**2], axis=2)  # (m, n, 2d)
    spread = jnp.sqrt(jnp.maximum(jnp.var(moments, axis=(0, 1)), tiny))
    chains = jnp.mean(moments, axis=0)
    error = jnp.max((_standard_error(chains) if origin is None else _family_error(chains, origin)) / spread)
    half = m // 2
    change = jnp.mean(moments[m - half :], axis=0) - jnp.mean(moments[:half], axis=0)
    drift, drift_z = jnp.mean(change, axis=0) / spread, _z(change, 0.0)
    worst = jnp.argmax(jnp.abs(drift_z))
    balance = jnp.mean((mean - places) * gradients, axis=0)  # (n, d)
    balance_z = _z(balance, 1.0)
    narrow = jnp.argmax(jnp.abs(balance_z))
    pull = jnp.mean(gradients, axis=0) * deviation[0]
    pull_z = _z(pull, 0.0)
    steep = jnp.argmax(jnp.abs(pull_z))
    stuck = jnp.max(jnp.var(jnp.mean(standard, axis=0), axis=0))
    # Bonferroni over all coordinates: two moments, equipartition, the score.
    threshold = jax.scipy.special.ndtri(jnp.asarray(1 - _FALSE_ALARM / (2 * 4 * d), dtype))
    equipartition, score = jnp.mean(balance, axis=0)[narrow], jnp.mean(pull, axis=0)[steep]
    faults = jnp.stack(
        [
            error > _ERROR,
            (jnp.abs(drift_z[worst]) > threshold) & (jnp.abs(drift[worst]) > _DRIFT),
            (jnp.abs(balance_z[narrow]) > threshold) & (jnp.abs(equipartition - 1) > _UNBALANCE),
            (jnp.abs(pull_z[steep]) > threshold) & (jnp.abs(score) > _UNBALANCE),
            jnp.asarray(frozen) > 0.05,
            ~jnp.isfinite(error),
            jnp.asarray(acceptance) < _REFUSED,
        ]
    )
    acceptance, divergent, frozen = (jnp.asarray(x, dtype) for x in (acceptance, divergent, frozen))
    enough = n >= _FEWEST and m >= 4
    wrong = jnp.any(faults) & enough
    clear = ((stuck <= _STUCK) | tempered) & (divergent <= _DIVERGENT)
    return Verdict(
        ~wrong & clear & enough,
        wrong,
        error,
        drift[worst],
        drift_z[worst],
        equipartition,
        balance_z[narrow],
        score,
        pull_z[steep],
        stuck,
        acceptance,
        divergent,
        frozen,
        threshold,
        tempered,
    )


def _standard_error(chains: Float[Array, "n k"]) -> Float[Array, " k"]:
    return jnp.std(chains, axis=0, ddof=1) / jnp.sqrt(jnp.asarray(chains.shape[0], chains.dtype))


def _family_error(chains: Float[Array, "n k"], origin: Int[Array, " n"]) -> Float[Array, " k"]:
    """Return standard errors of the means of particles of which those of one origin depend on each other."""
    n = chains.shape[0]
    families = jnp.zeros_like(chains).at[origin].add(chains - jnp.mean(chains, axis=0, keepdims=True))
    share = jnp.zeros(n, chains.dtype).at[origin].add(1) / n
    number = 1 / jnp.sum(share**2)  # of families, if all were of one size
    return jnp.sqrt(jnp.sum(families**2, axis=0) * number / jnp.maximum(number - 1, 1e-6)) / n


def _z(chains: Float[Array, "n k"], value: float) -> Float[Array, " k"]:
    error = jnp.maximum(_standard_error(chains), jnp.finfo(chains.dtype).tiny)
    return (jnp.mean(chains, axis=0) - value) / error


def _sentence(verdict: Verdict) -> str:
    v = {name: float(np.asarray(getattr(verdict, name))) for name in verdict.__dataclass_fields__ if name != "tempered"}
    if v["arrived"]:
        return (
            f"arrived, as far as the draws can tell: means to {v['error']:.2f} standard deviations, "
            f"equipartition {v['equipartition']:.2f} for 1"
        )
    if v["frozen"] >= 1:
        return (
            "not arrived: no particle has a finite log density and gradient where it starts, so none moves (give a "
            "domain, or a start inside the support)"
        )
    if v["acceptance"] >= _REFUSED and v["equipartition"] > _FAR and v["wrong"]:
        return (
            f"not arrived: the particles are still on their way from a start that is far out, equipartition "
            f"{v['equipartition']:.0f} for 1 (write unknowns in units in which they are of order one, such as "
            "standardised data, or give particles near the mode; more max_gradients hardly help)"
        )
    if v["acceptance"] < _REFUSED:
        return (
            "not arrived: hardly a move is accepted: the start is far out in a tail (write coordinates in units of "
            "their size, such as standardised covariates, or give particles nearer the mode) or the density flat (is "
            "it improper?)"
        )
    doubts = _doubts(v, tempered=verdict.tempered)
    if v["wrong"]:
        return "not arrived: " + "; ".join(_wrong(v, tempered=verdict.tempered) + doubts)
    few = f"fewer than {_FEWEST} particles, or than 4 draws of each (give more)"
    return "cannot tell: " + "; ".join(doubts or [few])


def _wrong(v: dict[str, float], *, tempered: bool) -> list[str]:
    """Return what is wrong, with what to do, for people."""
    threshold, reasons = v["threshold"], []
    if v["frozen"] > 0.05:
        reasons.append(
            f"{v['frozen']:.0%} of the particles are frozen, for want of a finite density (give a domain, or a start "
            "inside the support)"
        )
    if abs(v["drift_z"]) > threshold and abs(v["drift"]) > _DRIFT:
        reasons.append(f"the draws still drift, by {v['drift']:.2f} standard deviations (more max_gradients)")
    if abs(v["equipartition_z"]) > threshold and abs(v["equipartition"] - 1) > _UNBALANCE:
        figure = f"equipartition {v['equipartition']:.2f} for 1"
        if abs(v["equipartition"]) < _UNPULLED:
            reasons.append(f"the density hardly pulls a coordinate back, {figure} (is it improper?)")
        else:
            how = "narrow" if v["equipartition"] < 1 else "wide"
            reasons.append(f"a coordinate is too {how}, {figure} (more max_gradients)")
    if abs(v["score_z"]) > threshold and abs(v["score"]) > _UNBALANCE:
        reasons.append(f"the mean score is {v['score']:.2f} for 0 (more max_gradients)")
    if v["error"] > _ERROR:
        more = "particles and max_gradients" if tempered else "max_gradients"
        reasons.append(f"a moment is known to {v['error']:.2f} standard deviations only (more {more})")
    if not np.isfinite(v["error"]):
        reasons.append("the draws are not finite (an improper density, or a start outside of its support)")
    return reasons


def _doubts(v: dict[str, float], *, tempered: bool) -> list[str]:
    """Return why draws that may be right cannot show it, with what to do, for people."""
    reasons = []
    if v["stuck"] > _STUCK and not tempered:
        reasons.append(
            "particles keep to places of their own, in separate modes or by slow mixing (tempered=True carries mass "
            "between modes; else more max_gradients)"
        )
    if v["divergent"] > _LOST:
        reasons.append(f"{v['divergent']:.0%} of the moves diverge (is it proper, and are its gradients its own?)")
    elif v["divergent"] > _DIVERGENT:
        reasons.append(
            f"{v['divergent']:.1%} of the moves diverge, as they do at the neck of a funnel, where draws are then too "
            "few (write scales in other coordinates: non-centred, or their log)"
        )
    return reasons
