"""Token embeddings as particles."""

from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from flowrl._custom_types import Key
from flowrl._kernel import squared_distances
from flowrl._misc import number_field
from flowrl.rlhf.models import LanguageModel, Prompt, Response, Sampler
from flowrl.rlhf.spaces._base import AbstractReferenceSpace, Table, finish, running


class TokenSpace(AbstractReferenceSpace):
    r"""Points of the reward model's token-embedding space, one per token: the paper read literally.

    A particle is u, (T, d), at first the embeddings of the sampled tokens. Decoded to the nearest token, a point that
    moves less than half the distance to its neighbours changes nothing, and one that moves further need not come to
    text: `decode` "prior" weighs the reference in, token by token,
    $\mathrm{argmax}_v \log μ(v \mid y_{<t}) - |E_v - u_t|^2 / τ$.

    Attributes:
        model: the reference language model.
        sampler: how the responses were drawn.
        by: "nearest" or "prior".
        width: τ > 0 of "prior", in squared units of the embeddings.
    """

    model: LanguageModel
    sampler: Sampler
    by: Literal["nearest", "prior"] = eqx.field(static=True, default="nearest")
    width: ArrayLike = eqx.field(converter=number_field("width", lambda width: width > 0, "> 0"), default=0.1)

    def __check_init__(self):
        if self.by not in ("nearest", "prior"):
            raise ValueError(f'by must be "nearest" or "prior", got {self.by!r}.')

    def encode(self, table: Table, prompt: Prompt, response: Response, key: Key) -> Float[Array, "T d"]:
        del prompt, key
        return table[response.tokens].astype(jnp.float32)

    def relax(
        self, table: Table, prompt: Prompt, particle: Float[Array, "T d"]
    ) -> tuple[Float[Array, "T d"], Bool[Array, " T"]]:
        del prompt
        near = self._nearest(table, jax.lax.stop_gradient(particle))
        return particle.astype(table.dtype), running(self.sampler, near)

    def decode(
        self, table: Table, prompt: Prompt, particle: Float[Array, "T d"], start: Float[Array, "T d"], key: Key
    ) -> tuple[Int[Array, " T"], Bool[Array, " T"]]:
        del start, key
        if self.by == "nearest":
            return finish(self.sampler, self._nearest(table, particle))
        width = jnp.asarray(self.width, particle.dtype)
        chosen = self.sampler.greedy(self.model, prompt, lambda t: -_distances(table, particle[t][None])[0] / width)
        return chosen.tokens, chosen.mask

    def _nearest(self, table: Table, points: Float[Array, "T d"]) -> Int[Array, " T"]:
        return self.sampler.choose(-_distances(table, points))


def _distances(table: Table, points: Float[Array, "T d"]) -> Float[Array, "T V"]:
    """Squared distances, as one matrix product. The table is centred, so that an offset costs no digits."""
    table = table.astype(points.dtype)
    centre = jnp.mean(table, axis=0, keepdims=True)
    return squared_distances(points - centre, table - centre)
