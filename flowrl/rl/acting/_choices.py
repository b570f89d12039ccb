"""Stages that leave one candidate: the best of them, one by chance, one in the middle, or one made of many."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flowrl._custom_types import Key
from flowrl._misc import check_count, number_field
from flowrl._select import best_of_n, softmax_select, uniform_select
from flowrl.rl.acting._spaces import AbstractSpace, Noise
from flowrl.rl.acting._stage import AbstractStage, Candidates, Situation

_temperature = number_field("temperature", lambda x: x > 0, "> 0; at 0 it would be Best()", np.float32)


def spread_of(values: Float[Array, " n"]) -> Float[Array, ""]:
    """Return σ, the standard deviation of the values of a set, never 0."""
    return jnp.maximum(jnp.std(values), jnp.finfo(values.dtype).tiny ** 0.5)


class AbstractChoice(AbstractStage):
    """A stage that leaves one candidate."""

    @property
    def leaves_one(self) -> bool:
        return True


class Best(AbstractChoice):
    """The candidate of the highest value; the first where the algorithm has no values."""

    @property
    def needs(self) -> frozenset[str]:
        return frozenset()

    def __call__(self, situation: Situation, candidates: Candidates, key: Key) -> Candidates:
        del key
        return candidates.only(best_of_n(candidates.actions, situation.values(candidates.actions)).index)


class Uniform(AbstractChoice):
    """One by chance: the flow, or the reference, by itself."""

    @property
    def needs(self) -> frozenset[str]:
        return frozenset()

    def __call__(self, situation: Situation, candidates: Candidates, key: Key) -> Candidates:
        values = situation.values(candidates.actions)
        return candidates.only(uniform_select(candidates.actions, values, key=key).index)


class Softmax(AbstractChoice):
    """One with probability ∝ exp(value / (temperature · σ)), σ the standard deviation of the set's values.

    Attributes:
        temperature: > 0, in units of σ, an array ().
    """

    temperature: Array = eqx.field(converter=_temperature)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"values"})

    def __call__(self, situation: Situation, candidates: Candidates, key: Key) -> Candidates:
        values = situation.values(candidates.actions)
        temperature = self.temperature.astype(values.dtype) * spread_of(values)
        return candidates.only(softmax_select(candidates.actions, values, temperature, key=key).index)


class EliteMedoid(AbstractChoice):
    """Of the candidates of the highest values the one in their middle: nearest to the others in units of length.

    Attributes:
        elites: how many are the highest, >= 1.
    """

    elites: int = eqx.field(static=True)

    def __check_init__(self):
        check_count("EliteMedoid: elites", self.elites)

    @property
    def least(self) -> int:
        return self.elites

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"values"})

    def __call__(self, situation: Situation, candidates: Candidates, key: Key) -> Candidates:
        del key
        actions = candidates.actions / situation.unit(candidates.actions.shape[1])[None]
        weights = _elite_weights(situation.values(candidates.actions), self.elites)
        distances = jnp.linalg.norm(actions[:, None] - actions[None], axis=2) @ weights
        return candidates.only(jnp.argmin(jnp.where(weights > 0, distances, jnp.inf)))


class EliteMean(AbstractChoice):
    """The mean of the candidates of the highest values.

    A mean of noise is shorter than any of them: it shrinks the set toward the reference's mode.

    Attributes:
        elites: how many are the highest, >= 1; all candidates are the mean without a critic.
        space: where the mean is taken.
    """

    elites: int = eqx.field(static=True)
    space: AbstractSpace = Noise()

    def __check_init__(self):
        check_count("EliteMean: elites", self.elites)

    @property
    def least(self) -> int:
        return self.elites

    @property
    def needs(self) -> frozenset[str]:
        return self.space.needs | {"values"}

    @property
    def keeps_noise(self) -> bool:
        return "noise" in self.space.needs

    def __call__(self, situation: Situation, candidates: Candidates, key: Key) -> Candidates:
        del key
        weights = _elite_weights(situation.values(candidates.actions), self.elites)
        return _merged(self.space, situation, candidates, weights)


class Barycentre(AbstractChoice):
    r"""The mean of the candidates weighed by exp(value / (temperature · σ)), σ the standard deviation of their values.

    It is one step of size 1 of `flowrl.Consensus(1, 0)`, after which all particles are in one place. At temperature 0
    it would be the best candidate; above, the set's noise averages out of the critic's, of which an argmax takes the
    largest.

    Attributes:
        temperature: > 0, in units of σ, an array (); ∞ is the mean without a critic.
        space: where the mean is taken.

    ??? cite "Source"
        Pinnau, Totzeck, Tse and Martin, *A consensus-based model for global optimization and its mean-field limit*,
        M3AS 27, 2017. Taking it over a reference's noise is this library's.
    """

    temperature: Array = eqx.field(converter=_temperature, default=0.5)
    space: AbstractSpace = Noise()

    @property
    def needs(self) -> frozenset[str]:
        return self.space.needs | {"values"}

    @property
    def keeps_noise(self) -> bool:
        return "noise" in self.space.needs

    def __call__(self, situation: Situation, candidates: Candidates, key: Key) -> Candidates:
        del key
        values = situation.values(candidates.actions)
        temperature = self.temperature.astype(values.dtype) * spread_of(values)
        return _merged(self.space, situation, candidates, jax.nn.softmax((values - jnp.max(values)) / temperature))


def _merged(
    space: AbstractSpace, situation: Situation, candidates: Candidates, weights: Float[Array, " n"]
) -> Candidates:
    """Return one candidate, the mean of all by weights of sum 1, decoded where it is a mean of noise."""
    mean = jnp.tensordot(weights, space.particles(candidates), axes=1)[None]
    merged = space.decode(situation, mean, candidates.origins[:1])
    # It comes from no proposal; how far it is from the nearest one says how far from the reference's samples.
    unit = situation.unit(merged.actions.shape[1])
    nearest = jnp.argmin(jnp.sum(((candidates.origins - merged.actions) / unit[None]) ** 2, axis=1))
    return eqx.tree_at(lambda c: c.origins, merged, candidates.origins[nearest][None])


def _elite_weights(values: Float[Array, " n"], elites: int) -> Float[Array, " n"]:
    """Return 1 / elites for the highest values, 0 for the others; of equal values the first count."""
    order = jnp.argsort(jnp.where(jnp.isfinite(values), -values, jnp.inf), stable=True)
    return jnp.zeros_like(values).at[order[:elites]].set(1 / elites)
