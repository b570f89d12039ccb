"""One loop for every loss on pairs, texts or rollouts: minibatches, AdamW, early stop, a state that can be kept."""

from collections.abc import Callable
from typing import Any, Generic, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PyTree

from flowrl._custom_types import Key
from flowrl._misc import check_count

M = TypeVar("M", bound=eqx.Module)
Loss = Callable[[Any, Any, Key | None], Float[Array, ""]]


class FitState(eqx.Module, Generic[M]):
    """Everything that a run of `fit` needs to go on.

    Attributes:
        model: after the last update.
        best: of the lowest validation loss; what `fit` returns.
        optimiser: state of the optimiser.
        lowest: that loss `()`; infinite before the first validation.
        step: updates so far `()`.
        waited: validations since the best one `()`.
        key: randomness of what follows.
    """

    model: M
    best: M
    optimiser: PyTree
    lowest: Float[Array, ""]
    step: Int[Array, ""]
    waited: Int[Array, ""]
    key: Key


class Fit(eqx.Module):
    """Settings of a fit.

    Attributes:
        steps: updates at most.
        batch_size: rows of one update.
        learning_rate: peak of AdamW's rate, after a tenth of warm-up falling to a tenth by a cosine.
        weight_decay: of AdamW, on matrices only.
        clip: largest norm of a gradient.
        interval: updates between two validations.
        patience: validations without progress after which it stops; None for never, and then the last model is kept.
    """

    steps: int = eqx.field(static=True)
    batch_size: int = eqx.field(static=True, default=64)
    learning_rate: float = eqx.field(static=True, default=1e-3)
    weight_decay: float = eqx.field(static=True, default=0.01)
    clip: float = eqx.field(static=True, default=1.0)
    interval: int = eqx.field(static=True, default=50)
    patience: int | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        for name in ("steps", "batch_size", "interval"):
            check_count(name, getattr(self, name))
        if self.patience is not None:
            check_count("patience", self.patience)

    def optimiser(self) -> optax.GradientTransformation:
        """Return the optimiser."""
        rate = optax.warmup_cosine_decay_schedule(
            0.0, self.learning_rate, max(self.steps // 10, 1), max(self.steps, 2), 0.1 * self.learning_rate
        )
        decay = optax.adamw(rate, weight_decay=self.weight_decay, mask=_matrices)
        return optax.chain(optax.clip_by_global_norm(self.clip), decay)

    def start(self, model: M, *, key: Key) -> FitState[M]:
        """Return the state before the first update.

        Args:
            model: what is fitted.
            key: randomness.
        """
        # A copy: a buffer that is held twice cannot be given away twice.
        best = jax.tree.map(lambda leaf: jnp.copy(leaf) if eqx.is_array(leaf) else leaf, model)
        zero = jnp.zeros((), jnp.int32)
        state = self.optimiser().init(eqx.filter(model, eqx.is_inexact_array))
        return FitState(model, best, state, jnp.asarray(jnp.inf, jnp.float32), zero, zero, key)


def fit(
    loss: Loss,
    plan: Fit,
    state: FitState[M],
    rows: PyTree,
    validation: PyTree | None = None,
    *,
    report: Callable[[FitState[M], dict[str, float]], None] | None = None,
) -> M:
    """Minimise the mean of a loss over rows.

    Returns the model of the lowest validation loss if `plan.patience` is given, else the last one.

    Args:
        loss: function of (model, batch of rows, key) to a scalar; with the key None, in validation, nothing is dropped.
        plan: the settings.
        state: where to begin: `plan.start(model, key=key)`, or a state kept by `report`.
        rows: PyTree of arrays with a common leading axis.
        validation: held-out rows; without them the last model is kept.
        report: called every `plan.interval` updates with the state and {"step", "loss", "validation"}; the place for a
            checkpoint and a progress bar.

    Raises:
        ValueError: `patience` without validation rows, or no rows.
        FloatingPointError: the loss is not finite; the message names the step.
    """
    if plan.patience is not None and validation is None:
        raise ValueError("patience stops on a validation loss: give validation rows, or patience=None.")
    count = {leaf.shape[0] for leaf in jax.tree.leaves(rows)}
    if len(count) != 1 or 0 in count:
        raise ValueError(
            f"rows must be arrays with a common leading axis of at least one row, got sizes {sorted(count)}."
        )
    held_out = None if validation is None else jax.tree.map(jnp.asarray, validation)
    rows = jax.tree.map(jnp.asarray, rows)
    while int(state.step) < plan.steps and (plan.patience is None or int(state.waited) < plan.patience):
        updates = min(plan.interval, plan.steps - int(state.step))
        state, mean, checked = _interval(loss, plan, updates, state, rows, held_out)
        if not np.isfinite(mean):
            raise FloatingPointError(
                f"the loss is {float(mean)} within the {updates} updates before step {int(state.step)}; lower "
                "learning_rate, or look for rows without any token."
            )
        if held_out is not None and not np.isfinite(checked):
            raise FloatingPointError(f"the validation loss is {float(checked)} at step {int(state.step)}.")
        if report is not None:
            report(state, {"step": int(state.step), "loss": float(mean), "validation": float(checked)})
    return state.model if plan.patience is None else state.best


def _matrices(tree: PyTree) -> PyTree:
    """Mark matrices. Where layers are stacked, biases and norms have two axes as well, so their names tell."""
    others = (".bias", ".scale", ".shift")
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf.ndim >= 2 and not jax.tree_util.keystr(path).endswith(others), tree
    )


@eqx.filter_jit
def _interval(
    loss: Loss, plan: Fit, updates: int, state: FitState[M], rows: PyTree, validation: PyTree | None
) -> tuple[FitState[M], Array, Array]:
    optimiser, count = plan.optimiser(), jax.tree.leaves(rows)[0].shape[0]
    dynamic, static = eqx.partition(state.model, eqx.is_inexact_array)

    def update(carry, _):
        weights, moments, key = carry
        key, batch_key, loss_key = jr.split(key, 3)
        index = jr.randint(batch_key, (plan.batch_size,), 0, count)
        batch = jax.tree.map(lambda leaf: leaf[index], rows)
        value, gradient = jax.value_and_grad(lambda w: loss(eqx.combine(w, static), batch, loss_key))(weights)
        with jax.numpy_dtype_promotion("standard"):  # optax raises a float32 rate to an integer power
            step, moments = optimiser.update(gradient, moments, weights)
        step = jax.tree.map(lambda s, w: s.astype(w.dtype), step, weights)
        return (optax.apply_updates(weights, step), moments, key), value

    carry, values = jax.lax.scan(update, (dynamic, state.optimiser, state.key), length=updates)
    model = eqx.combine(carry[0], static)
    checked = jnp.asarray(jnp.nan, jnp.float32)
    lowest, waited, best = state.lowest, state.waited, state.best
    if validation is not None:
        checked = _mean_loss(loss, plan, model, validation).astype(jnp.float32)
        better = checked < lowest
        lowest, waited = jnp.where(better, checked, lowest), jnp.where(better, 0, waited + 1).astype(jnp.int32)
        best = jax.tree.map(lambda new, old: jnp.where(better, new, old) if eqx.is_array(new) else new, model, best)
    new = FitState(model, best, carry[1], lowest, state.step + updates, waited, carry[2])
    return new, jnp.mean(values), checked


def _mean_loss(loss: Loss, plan: Fit, model: Any, rows: PyTree) -> Array:
    """The mean over whole batches of the rows in order; what is left over after the last whole batch is not used."""
    count = jax.tree.leaves(rows)[0].shape[0]
    size = min(plan.batch_size, count)
    whole = jax.tree.map(lambda leaf: leaf[: count // size * size].reshape(-1, size, *leaf.shape[1:]), rows)
    return jnp.mean(jax.lax.map(lambda batch: loss(model, batch, None), whole))
