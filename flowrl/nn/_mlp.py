"""A multilayer perceptron whose inputs stay apart, so that what many particles share is multiplied once."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from flowrl._custom_types import Key

M = TypeVar("M", bound=eqx.Module)


class Linear(eqx.Module):
    """An affine map x W + b on the last axis; W starts Glorot-uniform, b zero.

    Args:
        inputs: size of the last axis of the input.
        outputs: size of the last axis of the output.
        key: randomness of the weights.
    """

    weight: Float[Array, "inputs outputs"]
    bias: Float[Array, " outputs"]

    def __init__(self, inputs: int, outputs: int, *, key: Key):
        limit = (6 / (inputs + outputs)) ** 0.5
        # Networks are float32 also in a process with 64-bit types: data and weights then never mix dtypes.
        self.weight = jr.uniform(key, (inputs, outputs), jnp.float32, minval=-limit, maxval=limit)
        self.bias = jnp.zeros(outputs, jnp.float32)


class MLP(eqx.Module):
    """A multilayer perceptron of several inputs, treated as if concatenated.

    Args:
        inputs: sizes of the inputs, in order.
        outputs: size of the output.
        hidden: widths of the hidden layers.
        layer_norm: normalise each hidden layer, before its activation.
        activation: elementwise function.
        key: randomness of the weights.
    """

    layers: tuple[Linear, ...]
    norm_scale: tuple[Float[Array, " width"], ...]
    norm_shift: tuple[Float[Array, " width"], ...]
    activation: Callable[[Array], Array] = eqx.field(static=True)

    def __init__(
        self,
        inputs: Sequence[int],
        outputs: int,
        hidden: Sequence[int],
        *,
        layer_norm: bool = False,
        activation: Callable[[Array], Array] = jax.nn.relu,
        key: Key,
    ):
        sizes = (sum(inputs), *hidden, outputs)
        keys = jr.split(key, len(sizes) - 1)
        self.layers = tuple(Linear(a, b, key=k) for a, b, k in zip(sizes[:-1], sizes[1:], keys, strict=True))
        self.norm_scale = tuple(jnp.ones(width, jnp.float32) for width in hidden) if layer_norm else ()
        self.norm_shift = tuple(jnp.zeros(width, jnp.float32) for width in hidden) if layer_norm else ()
        self.activation = activation

    def __call__(self, *inputs: Float[Array, " _"]) -> Float[Array, " outputs"]:
        """Evaluate the network at one point.

        Args:
            inputs: vectors of the sizes given at construction, in order.
        """
        # A sum of products in the first layer: under `jax.vmap` over particles, an input that is not mapped (the state)
        # is multiplied once, not once per particle.
        x, offset = self.layers[0].bias, 0
        for part in inputs:
            x = x + part @ self.layers[0].weight[offset : offset + part.shape[0]]
            offset += part.shape[0]
        for i, layer in enumerate(self.layers[1:]):
            if self.norm_scale:
                x = _layer_norm(x) * self.norm_scale[i] + self.norm_shift[i]
            x = self.activation(x) @ layer.weight + layer.bias
        return x


def stack(make: Callable[[Key], M], count: int, *, key: Key) -> M:
    """Make `count` modules of one structure, stacked along a new leading axis of every array.

    Args:
        make: makes one module from a key.
        count: how many.
        key: split into one key per module.

    Returns:
        One module; call it through `equinox.filter_vmap`.
    """
    return eqx.filter_vmap(make)(jr.split(key, count))


def _layer_norm(x: Float[Array, " width"]) -> Float[Array, " width"]:
    centred = x - jnp.mean(x)
    return centred * jax.lax.rsqrt(jnp.mean(centred * centred) + 1e-6)
