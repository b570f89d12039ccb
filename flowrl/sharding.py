"""More than one device: particles, states of a batch and seeds over a mesh of `jax.sharding`.

Arrays are placed, programs stay as they are: XLA divides what is independent along a placed axis. Only the pair sums of
one set of particles need a kernel of their own, `Sharded`. Several processes (`jax.distributed.initialize`) are one
larger mesh.
"""

import math
from collections.abc import Callable
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from flowrl._custom_types import Mask, PerParticle, Positions, Scalar
from flowrl._kernel import AbstractKernel, AbstractScalarKernel, centre, mass_of, total_of
from flowrl._misc import check_count, check_kind

_T = TypeVar("_T")


def mesh(**axes: int) -> Mesh:
    """Make a mesh of all devices, those of other processes included, whose axes XLA divides work along.

    Args:
        axes: size of each axis by its name; their product is the number of devices.

    Raises:
        ValueError: a size is no count, or there are not as many devices.

    Example:
        ```python
        import jax
        import flowrl

        devices = flowrl.sharding.mesh(particles=jax.device_count())
        ```
    """
    for name, size in axes.items():
        check_count(name, size)
    sizes = tuple(axes.values())
    if math.prod(sizes) != jax.device_count():  # fewer would leave devices, and with them processes, without work
        raise ValueError(f"a mesh of {axes} does not fit {jax.device_count()} devices.")
    return jax.make_mesh(sizes, tuple(axes), axis_types=(AxisType.Auto,) * len(sizes))


def split(tree: _T, devices: Mesh, axis: str = "particles") -> _T:
    """Place arrays with their leading axis divided over a mesh axis: particles (n, ...), or states of many seeds.

    With several processes every process gives the same whole arrays and keeps its own part.

    Args:
        tree: PyTree; its arrays are placed, anything else is left as it is.
        devices: the mesh.
        axis: name of the mesh axis.

    Raises:
        TypeError: `devices` is no mesh.
        ValueError: the mesh has no such axis, or a leading axis is not a multiple of its size.
    """
    size = _size(devices, axis)
    for leaf in jax.tree.leaves(eqx.filter(tree, _is_array)):
        if jnp.ndim(leaf) == 0 or leaf.shape[0] % size:
            raise ValueError(
                f"an array of shape {jnp.shape(leaf)} cannot be split over {size} devices: its leading axis must be a "
                f"multiple of {size}."
            )
    return _placed(tree, NamedSharding(devices, PartitionSpec(axis)))


def replicate(tree: _T, devices: Mesh) -> _T:
    """Place arrays whole on every device: networks, data.

    Args:
        tree: PyTree; its arrays are placed, anything else is left as it is.
        devices: the mesh.

    Raises:
        TypeError: `devices` is no mesh.
    """
    _check_mesh(devices)
    return _placed(tree, NamedSharding(devices, PartitionSpec()))


def over_states(rows: Array) -> Array:
    """Divide a batch over the axis "states" of the mesh in force (`jax.set_mesh`); without one, return it as it is.

    `flowrl.rl.VGF` calls it on the rows of a batch, so all that is computed for a state is computed on its device, and
    gradients of the networks are summed over devices.

    Args:
        rows: (batch, ...).
    """
    devices = jax.sharding.get_abstract_mesh()
    if "states" not in devices.axis_names:
        return rows
    return jax.lax.with_sharding_constraint(rows, PartitionSpec("states"))


class Sharded(AbstractKernel):
    """A scalar kernel whose Stein direction is summed with the particles divided over devices.

    Every device keeps n / devices particles, which visit the other devices in a ring, so it holds two blocks of
    particles and one tile of the kernel matrix at a time: memory per device is O(n d / devices), and nothing is ever
    gathered. The result is that of the kernel on one device, to rounding.

    Attributes:
        kernel: k.
        devices: the mesh.
        axis: name of the mesh axis that the particles are divided over; n must be a multiple of its size.

    Example:
        ```python
        import jax
        import jax.numpy as jnp
        import flowrl

        devices = flowrl.sharding.mesh(particles=jax.device_count())
        particles = flowrl.sharding.split(jax.random.normal(jax.random.key(0), (64, 2)), devices)
        flow = flowrl.SVGD(flowrl.sharding.Sharded(flowrl.RBF(), devices))
        target = flowrl.Density(lambda x: -0.5 * jnp.sum(x**2))
        solution = flowrl.transport(target, particles, flowrl.Budget(10, 0.1), flow=flow)
        ```
    """

    kernel: AbstractScalarKernel
    devices: Mesh = eqx.field(static=True)
    axis: str = eqx.field(static=True, default="particles")

    def __check_init__(self):
        if not isinstance(self.kernel, AbstractScalarKernel):
            raise TypeError(f"Sharded takes a scalar kernel such as RBF(), got {self.kernel!r}.")
        _size(self.devices, self.axis)

    def fitted(self, positions: Positions, alive: Mask) -> "Sharded":
        return Sharded(self.kernel.fitted(positions, alive), self.devices, self.axis)

    def stein(
        self,
        positions: Positions,
        gradient: Positions,
        alive: Mask,
        temperature: Scalar,
        weights: PerParticle | None = None,
    ) -> Positions:
        # A ring: each device keeps its block of particles, and the other blocks visit it one after the other.
        size = _size(self.devices, self.axis)
        if positions.shape[0] % size:
            raise ValueError(f"{positions.shape[0]} particles cannot be divided over {size} devices.")
        x, mass = centre(positions, alive, weights), mass_of(alive, weights, positions.dtype)
        ring = [(i, (i + 1) % size) for i in range(size)]

        def local(kernel: AbstractScalarKernel, temperature: Array, x: Array, gradient: Array, weight: Array) -> Array:
            def visit(carry: tuple[Array, ...], _: None) -> tuple[tuple[Array, ...], None]:
                total, *visitors = carry
                y, g, w = jax.lax.ppermute(visitors, self.axis, ring)
                return (total + kernel.stein_sum(x, y, g, w, temperature), y, g, w), None

            own = kernel.stein_sum(x, x, gradient, weight, temperature)
            return jax.lax.scan(visit, (own, x, gradient, weight), length=size - 1)[0][0]

        whole, part = PartitionSpec(), PartitionSpec(self.axis)
        summed: Callable[..., Array] = jax.shard_map(
            local,
            mesh=self.devices,
            in_specs=(whole, whole, part, part, part),
            out_specs=part,
            # The sums over tiles start from zeros, which a device has without being told that they are its own.
            check_vma=False,
        )
        v = summed(self.kernel.fitted(x, alive), temperature, x, gradient, mass)
        return alive.astype(x.dtype)[:, None] * v / total_of(mass)

    def stein_gram(
        self,
        x: Float[Array, "n d"],
        score_x: Float[Array, "n d"],
        y: Float[Array, "m d"],
        score_y: Float[Array, "m d"],
    ) -> Float[Array, "n m"]:
        # A matrix, not a sum: nothing to divide.
        return self.kernel.stein_gram(x, score_x, y, score_y)


def _check_mesh(devices: Any) -> None:
    check_kind("devices", devices, Mesh, "mesh(particles=jax.device_count()) makes one")


def _size(devices: Mesh, axis: str) -> int:
    _check_mesh(devices)
    if axis not in devices.axis_names:
        raise ValueError(f"the mesh has the axes {devices.axis_names}, not {axis!r}; make it by mesh({axis}=...).")
    if devices.axis_types[devices.axis_names.index(axis)] != AxisType.Auto:
        raise ValueError(f"the mesh axis {axis!r} is not one that XLA divides along; make it by mesh({axis}=...).")
    return devices.shape[axis]


def _is_array(x: Any) -> bool:
    return eqx.is_array(x) or isinstance(x, np.ndarray)


def _placed(tree: _T, sharding: NamedSharding) -> _T:
    return jax.tree.map(lambda x: jax.device_put(x, sharding) if _is_array(x) else x, tree)
