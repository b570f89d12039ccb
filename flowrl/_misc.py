"""Small helpers of every room: checks of concrete arguments, ravelling, safe norms."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.core
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from flowrl._custom_types import Particles, Positions


def concrete(x: Any) -> np.ndarray | None:
    """Return the NumPy value of ``x``, or None while JAX is tracing it."""
    # Values are checked only where they exist; under `jax.jit` the same misuse becomes a `flowrl.RESULTS`.
    traced = any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(x))
    return None if traced else np.asarray(x)


def numbers_to_array(x: Any) -> Any:
    """Turn a list or tuple of numbers into an array; anything else, a PyTree of arrays included, is left as it is."""
    if isinstance(x, list | tuple) and x and all(isinstance(entry, int | float | list | tuple) for entry in x):
        return np.asarray(x)
    return x


def real_array(name: str, x: Any, ok: Callable[[np.ndarray], Any], expected: str) -> Array:
    """Return real numbers as an array, which never retraces; `ok` tells entry by entry whether one is in range."""
    try:
        array = jnp.asarray(x)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be a number or an array, got {x!r}.") from error
    if jnp.issubdtype(array.dtype, jnp.integer):
        array = array.astype(jnp.result_type(float))
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(f"{name} must be a real number, got dtype {array.dtype}.")
    # The number as it was given: inside a jitted function even a constant array is traced.
    value = concrete(x)
    if value is not None and not np.all(ok(value)):
        raise ValueError(f"{name} must be {expected}, got {value}.")
    # A strong dtype: a Python float and an array of the same value are then the same program.
    return jax.lax.convert_element_type(array, array.dtype)


def number(name: str, x: Any, ok: Callable[[np.ndarray], Any], expected: str) -> Array:
    """Return a user's one real number as an array (), checked as in `real_array`."""
    if np.shape(x) != ():
        raise ValueError(f"{name} must be one number, got shape {np.shape(x)}.")
    return real_array(name, x, ok, expected).astype(jnp.result_type(float))


def log_weights_array(log_weights: Any, count: int, dtype: Any) -> Array:
    """Return log weights (n,) of n particles, up to a constant; refuse what are none, and those that are all −∞."""
    array = real_array("log_weights", log_weights, lambda x: ~np.isnan(x) & (x < np.inf), "< inf and not NaN")
    if array.shape != (count,):
        raise ValueError(f"log_weights must have shape ({count},), one per particle; got {array.shape}.")
    known = concrete(log_weights)
    if known is not None and not (known > -np.inf).any():
        raise ValueError("log_weights are all -inf: no particle is left.")
    return array.astype(dtype)


def number_field(
    name: str, ok: Callable[[np.ndarray], Any], expected: str, dtype: Any = None
) -> Callable[[ArrayLike], Array]:
    """Return a converter of `eqx.field` for one real number; `dtype` None is that of a float."""

    def convert(x: ArrayLike) -> Array:
        return number(name, x, ok, expected).astype(dtype or jnp.result_type(float))

    return convert


def check_count(name: str, count: Any, least: int = 1) -> None:
    """Refuse a count that is not a Python int >= least: it sets the shape of a program."""
    if isinstance(count, bool) or not isinstance(count, int) or count < least:
        raise ValueError(f"{name} must be a Python int >= {least}, got {count!r}.")


def check_number(name: str, number: Any, good: Callable[[Any], Any], expected: str) -> None:
    """Refuse what is no number in range, a word or an array among others."""
    try:
        fine = bool(good(number))
    except (TypeError, ValueError):
        fine = False
    if not fine:
        raise ValueError(f"{name} must be {expected}, got {number!r}.")


def check_kind(name: str, thing: Any, kind: type | tuple[type, ...], way_out: str = "") -> None:
    """Refuse an argument of another kind; `way_out` says where one comes from."""
    if not isinstance(thing, kind):
        kinds = " or ".join(each.__name__ for each in (kind if isinstance(kind, tuple) else (kind,)))
        given = f"the class {thing.__name__}" if isinstance(thing, type) else type(thing).__name__
        raise TypeError(f"{name} must be of the kind {kinds}, got {given}{f': {way_out}' if way_out else ''}.")


def check_one_key(key: Any) -> None:
    """Refuse several keys, or something that is not a key of JAX."""
    dtype, shape = getattr(key, "dtype", None), np.shape(key) if hasattr(key, "shape") else None
    typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    if shape is None or (not typed and dtype != np.uint32):
        raise TypeError(f"key must be a key of JAX such as jax.random.key(0), got {key!r}.")
    if len(shape) != (0 if typed else 1):
        raise ValueError(f"key must be one key, got an array of them, {shape}; take one, or vmap over all.")


def check_fields(
    thing: Any,
    *,
    counts: tuple[str, ...] = (),
    positive: tuple[str, ...] = (),
    at_least_zero: tuple[str, ...] = (),
    fractions: tuple[str, ...] = (),
    shares: tuple[str, ...] = (),
    decays: tuple[str, ...] = (),
    widths: tuple[str, ...] = (),
    kinds: Mapping[str, type] = MappingProxyType({}),
    name: str = "",
) -> None:
    """Refuse fields, by name, that are out of range or of another kind; None passes, for an option left out.

    Counts are Python ints >= 1, fractions in (0, 1], shares in [0, 1], decays in [0, 1).
    """
    infinity = float("inf")
    for names, good, text in (
        (counts, lambda x: isinstance(x, int) and not isinstance(x, bool) and x >= 1, "a Python int >= 1"),
        (positive, lambda x: 0 < x < infinity, "> 0"),
        (at_least_zero, lambda x: 0 <= x < infinity, ">= 0"),
        (fractions, lambda x: 0 < x <= 1, "in (0, 1]"),
        (shares, lambda x: 0 <= x <= 1, "in [0, 1]"),
        (decays, lambda x: 0 <= x < 1, "in [0, 1)"),
        (widths, lambda x: all(width >= 1 for width in x), "widths >= 1, such as (256, 256)"),
    ):
        for field in names:
            value = getattr(thing, field)
            try:
                fine = value is None or good(value)
            except (TypeError, ValueError):  # of another kind altogether, as a word or an array is
                fine = False
            if not fine:
                raise ValueError(f"{name or type(thing).__name__}: {field} must be {text}, got {value!r}.")
    for field, kind in kinds.items():
        value = getattr(thing, field)
        if value is not None and not isinstance(value, kind):
            raise TypeError(
                f"{name or type(thing).__name__}: {field} must be an instance of {kind.__name__}, got {value!r}."
            )


_LIST = " A list is a PyTree of its entries; for one array pass jnp.asarray(...)."


def check_particles(particles: Particles) -> tuple[int, jnp.dtype]:
    """Return n and the dtype of particles; refuse anything but floating leaves (n, ...) of one dtype, n >= 1."""
    leaves = jax.tree_util.tree_leaves_with_path(particles)
    if not leaves:
        raise ValueError("particles has no array leaves; expected an array (n, d) or a PyTree of arrays (n, ...).")
    sizes: dict[str, int] = {}
    dtypes: dict[str, jnp.dtype] = {}
    for path, leaf in leaves:
        name = "particles" + jax.tree_util.keystr(path)
        if not isinstance(leaf, jax.Array | np.ndarray):
            hint = _LIST if isinstance(particles, list | tuple) else ""
            raise TypeError(
                f"{name} is a {type(leaf).__name__}; expected a floating array with a leading axis n.{hint}"
            )
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise TypeError(
                f"{name} has dtype {leaf.dtype}; only floating leaves can flow. Pass integers, masks and other "
                "constants as arguments of the target, e.g. Boltzmann(value, tokens)."
            )
        if leaf.dtype.itemsize < 2:
            raise TypeError(
                f"{name} has dtype {leaf.dtype}, whose few bits cannot hold a transport's result: cast to bfloat16 or "
                "more."
            )
        if leaf.ndim == 0:
            hint = _LIST if isinstance(particles, list | tuple) else ""
            raise ValueError(f"{name} is a scalar; expected a leading axis n, e.g. shape (n,) or (n, d).{hint}")
        sizes[name], dtypes[name] = leaf.shape[0], leaf.dtype
    if len(set(sizes.values())) > 1:
        raise ValueError(f"the leaves of particles disagree about the number of particles n: {sizes}.")
    if len(set(dtypes.values())) > 1:
        raise TypeError(f"the leaves of particles have different dtypes, cast them to one: {dtypes}.")
    n, dtype = next(iter(sizes.values())), next(iter(dtypes.values()))
    if n == 0:
        raise ValueError("particles holds no particle (n = 0); to transport no sets at all, vmap over an empty axis.")
    return n, dtype


def ravel(particles: Particles) -> tuple[Positions, Callable[[Positions], Particles]]:
    """Return particles as a matrix (n, d), and the function from such matrices (of any n) back to particles."""
    one = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape[1:], leaf.dtype), particles)
    _, unravel_one = jax.flatten_util.ravel_pytree(one)
    matrix = jax.vmap(lambda p: jax.flatten_util.ravel_pytree(p)[0])(particles)
    return matrix, jax.vmap(unravel_one)


def working_dtype(dtype: Any) -> Any:
    """Return the dtype in which particles of `dtype` are moved: float32 for those of fewer bits, else their own.

    In 16 bits squares of small lengths vanish, sums of steps stand still, and a step below the spacing of the numbers
    moves nothing.
    """
    return jnp.dtype(jnp.float32) if jnp.dtype(dtype).itemsize < 4 else jnp.dtype(dtype)


def widened(particles: Particles) -> Particles:
    """Return particles in their working dtype: as they are unless they have fewer than 32 bits."""
    return jax.tree.map(lambda leaf: leaf.astype(working_dtype(leaf.dtype)), particles)


def manual_axes(*trees: Any) -> frozenset[str]:
    """Return the axes of `jax.shard_map` along which one of the arrays differs from device to device."""
    arrays = [leaf for leaf in jax.tree.leaves(trees) if isinstance(leaf, jax.Array)]
    return frozenset().union(*(jax.typeof(leaf).mat.varying for leaf in arrays))  # pyright: ignore


def varying_as(tree: Any, *like: Any) -> Any:
    """Mark constants as different on every device where `like` are: a loop may only carry what keeps that mark."""
    axes = manual_axes(like)

    def cast(leaf: Any) -> Any:
        missing = tuple(axes - manual_axes(leaf)) if isinstance(leaf, jax.Array | np.ndarray | np.generic) else ()
        return jax.lax.pcast(jnp.asarray(leaf), missing, to="varying") if missing else leaf

    return jax.tree.map(cast, tree) if axes else tree


def refuse_checked_sharding(what: str, *trees: Any) -> None:
    """Refuse loops of another library within a `jax.shard_map` that checks which arrays differ between devices."""
    if manual_axes(trees):
        raise ValueError(f"{what} brings its own loop, which jax.shard_map cannot check: pass check_vma=False to it.")


def row_norm(x: Float[Array, "n d"]) -> Float[Array, " n"]:
    """Return the Euclidean norm of each row, with gradient zero (not NaN) at zero rows."""
    squared = jnp.sum(x * x, axis=-1)
    positive = squared > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, squared, 1)), 0)


def scaled_row_norm(x: Float[Array, "n d"]) -> Float[Array, " n"]:
    """Return `row_norm` of rows of any size: bit for bit the same where no square under- or overflows.

    Lengths are taken in units of a power of two near the largest entry of each row.
    """
    limit = -int(jnp.finfo(x.dtype).minexp) - 1  # beyond it the reciprocal of the unit would be no normal number
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(x), axis=-1, initial=0))
    exponent = jnp.frexp(jnp.where(jnp.isfinite(largest), largest, 1))[1]
    unit = jnp.ldexp(jnp.ones_like(largest), jnp.clip(exponent, -limit, limit))
    return unit * row_norm(x / unit[:, None])
