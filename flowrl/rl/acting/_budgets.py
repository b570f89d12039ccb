"""A test budget, or a training budget, chosen without acting: by what the critics say of the transported particles.

Held-out transitions are enough. At their next states candidates are proposed and transported by every step size at
once; whatever a budget of L steps does is read off after L steps.
"""

import dataclasses
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from flowrl._budget import Budget
from flowrl._custom_types import Key
from flowrl._misc import check_count, check_kind, check_number, check_one_key
from flowrl._select import best_of_n
from flowrl.rl.acting._stage import Situation
from flowrl.rl.data.replay import Replay
from flowrl.rl.learning import AbstractState, AbstractValueBased

# Bounds the memory: at the paper's size the networks hold gigabytes for all states at once.
_STATES_AT_ONCE = 512


@dataclasses.dataclass(frozen=True)
class MeasuredBudget:
    """What the critics say of one budget, averaged over held-out states.

    Values are of the ensemble's mean; std is over its members. "Chosen" is the candidate of the highest selection
    value among N.

    Attributes:
        budget: what was measured, in the algorithm's unit of length.
        gain: value of the chosen candidate less that of best-of-N, in units of the spread (standard deviation) of the
            N proposals' values in a state; 0 for L = 0.
        pessimistic_gain: the same of value − κ·std.
        gain_error: standard error of `pessimistic_gain` over states.
        disagreement: std at the chosen candidate over that at the choice of best-of-N; 1 for L = 0.
        displacement: root mean square over states and coordinates of the chosen candidate's displacement, in the unit
            of length.
        td_error: root mean square of Q(s, a) − r − γ·mean_i Q(s', a_i) with all N particles at this budget, relative to
            that at L = 0: how far bootstrapping from here is from what the critic has learned.
    """

    budget: Budget
    gain: float
    pessimistic_gain: float
    gain_error: float
    disagreement: float
    displacement: float
    td_error: float


@dataclasses.dataclass(frozen=True)
class ChosenBudget:
    """A budget with the reason for it.

    Attributes:
        budget: the choice, for a `Policy` or for training; of 0 steps where no transport is better than none.
        reason: one sentence for a report.
        measured: all candidates, the chosen one among them.
    """

    budget: Budget
    reason: str
    measured: tuple[MeasuredBudget, ...]


def measure_budgets(
    algorithm: AbstractValueBased,
    state: AbstractState,
    replay: Replay,
    budget: Budget,
    *,
    steps: tuple[int, ...],
    step_sizes: tuple[float, ...],
    candidates: int = 8,
    # The TD error of one budget on HalfCheetah was 1.003 to 1.011 by the draw of 512 states, 1.008 to 1.011 of 4096.
    states: int = 4096,
    pessimism: float = 1.0,
    key: Key,
) -> tuple[MeasuredBudget, ...]:
    """Measure every budget of a grid on held-out data, in one compiled call.

    Args:
        algorithm: the algorithm, with values.
        state: its networks.
        replay: held-out transitions.
        budget: what all budgets of the grid have in common, such as the train budget of a `VGF`: the grid is
            `budget.with_steps(L, ε)`.
        steps: all L >= 1 to measure, multiples of `budget.check_every`; L = 0 always is.
        step_sizes: all ε > 0, in the algorithm's unit of length.
        candidates: N >= 1, proposals per state.
        states: held-out transitions to average over; at most as many as there are. Few of them make the TD error too
            noisy for the limit of `choose_budget`.
        pessimism: κ >= 0.
        key: randomness of the rows and of the proposals, the same for all budgets.

    Returns:
        The budget L = 0 first, then all pairs, by step size and then by steps.

    Raises:
        TypeError: the algorithm has no values, or another argument is of another kind.
        ValueError: a number is out of range, or the budget has a schedule or a scale.
    """
    if not isinstance(algorithm, AbstractValueBased):
        raise TypeError(f"{type(algorithm).__name__} has no values by which budgets could be measured.")
    check_kind("state", state, AbstractState, "fit returns one")
    check_kind("replay", replay, Replay, "make_replay makes one of the data")
    check_kind("budget", budget, Budget, "such as the train_budget of the algorithm")
    check_one_key(key)
    if budget.scale is not None:
        raise ValueError("leave the budget's scale out; the algorithm states its own unit of length.")
    infinity = float("inf")
    whole = lambda x: len(x) and all(isinstance(each, int) and each >= 1 for each in x)
    positive = lambda x: len(x) and all(0 < each < infinity for each in x)
    check_number("steps", steps, whole, "Python ints >= 1, such as (1, 3)")
    check_number("step_sizes", step_sizes, positive, "finite numbers > 0, such as (0.1, 0.3)")
    check_count("candidates", candidates)
    check_count("states", states, 2)
    check_number("pessimism", pessimism, lambda x: 0 <= x < infinity, ">= 0")
    if any(length % budget.check_every for length in steps):
        # All budgets are read off one path, whose checks must be those of each.
        raise ValueError(f"steps must be multiples of the budget's check_every ({budget.check_every}), got {steps}.")
    grid = [(0, 0)] + [(i, length) for i in range(len(step_sizes)) for length in sorted(set(steps))]
    budgets = [budget.with_steps(length, step_sizes[i]) if length else budget.with_steps(0) for i, length in grid]
    states = min(states, replay.actions.shape[0])
    numbers = jnp.asarray(step_sizes, jnp.float32), jnp.asarray(pessimism, jnp.float32)
    measured = jax.device_get(_measure(algorithm, state, replay, budget, max(steps), candidates, states, numbers, key))
    return tuple(
        MeasuredBudget(at, *(float(field[i, length]) for field in measured))
        for at, (i, length) in zip(budgets, grid, strict=True)
    )


def choose_budget(
    measured: tuple[MeasuredBudget, ...],
    *,
    max_td_error: float = 1.01,
    max_disagreement: float = 1.1,
    max_displacement: float = 1.0,
) -> ChosenBudget:
    r"""Choose the budget of the largest pessimistic gain among those for which the critics can be believed.

    A critic Q is the value of the policy that its targets assume. What it says of a transported policy π' is true as
    far as Q also solves the Bellman equation of π':

    $$\|Q - Q^{π'}\|_\infty \le \frac{\|Q - T^{π'} Q\|_\infty}{1 - γ}$$

    and the held-out TD error estimates that residual, with the noise of the returns in it. The other two limits catch
    what it cannot see: candidates where the ensemble falls apart, and candidates further from the data than samples of
    the reference are from each other.

    The limits are rules of thumb, set on a handful of small data sets; docs/concepts/budget.md says how they did on
    others. A critic that has not converged fails the first limit early, and the choice is then too small.

    Args:
        measured: from `measure_budgets`.
        max_td_error: of the TD error, relative to that at L = 0; >= 1.
        max_disagreement: of the disagreement, relative to that at L = 0; >= 1.
        max_displacement: of the displacement, in spreads; > 0.

    Returns:
        The choice: L = 0 where no budget within the limits gains more than two standard errors.

    Raises:
        TypeError: `measured` is something else.
        ValueError: nothing was measured, or a limit leaves out L = 0.
    """
    check_kind("measured", measured, tuple, "measure_budgets gives it")
    for one in measured:
        check_kind("each measured budget", one, MeasuredBudget, "measure_budgets gives them")
    if not measured or not (max_td_error >= 1 and max_disagreement >= 1 and max_displacement > 0):
        raise ValueError(
            f"give measured budgets ({len(measured)}), max_td_error >= 1 ({max_td_error}), max_disagreement >= 1 "
            f"({max_disagreement}) and max_displacement > 0 ({max_displacement})."
        )
    budgets = [m for m in measured if m.budget.bound]
    nothing = measured[0].budget.with_steps(0)
    limits = {
        f"TD error {max_td_error:g}": [m.td_error <= max_td_error for m in budgets],
        f"disagreement {max_disagreement:g}": [m.disagreement <= max_disagreement for m in budgets],
        f"displacement {max_displacement:g}": [m.displacement <= max_displacement for m in budgets],
    }
    beyond = ", ".join(f"{kept.count(False)} beyond {name}" for name, kept in limits.items())
    known = [m for m, *kept in zip(budgets, *limits.values(), strict=True) if all(kept)]
    gaining = [m for m in known if m.pessimistic_gain > 2 * m.gain_error]
    found = f"of {len(budgets)} budgets {beyond}; {len(known)} within all limits"
    if not gaining:
        return ChosenBudget(nothing, f"L = 0: {found}, none of which gains pessimistically", measured)
    best = max(gaining, key=lambda m: m.pessimistic_gain)
    reason = (
        f"L = {best.budget.bound}, step {float(best.budget.step_size):g}: {found}; it has the largest pessimistic gain "
        f"of those, {best.pessimistic_gain:+.2f} spreads of the proposals' values, and moves actions by "
        f"{best.displacement:.2f}"
    )
    return ChosenBudget(best.budget, reason, measured)


@eqx.filter_jit
def _measure(
    algorithm: AbstractValueBased,
    state: AbstractState,
    replay: Replay,
    budget: Budget,
    most: int,
    candidates: int,
    states: int,
    numbers: tuple[Float[Array, " sizes"], Float[Array, ""]],
    key: Key,
) -> tuple[Float[Array, "sizes steps"], ...]:
    """Compute the numbers of `MeasuredBudget` for every step size and L = 0, ..., `most`."""
    step_sizes, pessimism = numbers
    row_key, proposal_key = jr.split(key)
    rows = jr.choice(row_key, replay.actions.shape[0], (states,), replace=False)
    next_observations = replay.next_observations[replay.bootstrap[rows]]
    learned = jax.vmap(lambda s, a: jnp.mean(algorithm.values(state, s, a[None])))
    predictions = learned(replay.observations[rows], replay.actions[rows])

    def path_values(observation: Array, path: Array) -> Array:
        return jax.vmap(lambda actions: algorithm.values(state, observation, actions))(path)

    def one(step_size: Array, observation: Array, key: Key) -> tuple[Array, ...]:
        start = jax.vmap(lambda k: algorithm.propose(state, observation, k))(jr.split(key, candidates))
        path = algorithm.improve(state, observation, start, budget.with_steps(most, step_size)).trajectory
        assert path is not None
        values = path_values(observation, path)  # (steps, members, n)
        ranked = jax.vmap(algorithm.selection)(values)
        index = jax.vmap(lambda v: best_of_n(v[:, None], v).index)(ranked)
        mean, std = jnp.mean(values, axis=1), jnp.std(values, axis=1)
        picked = jax.vmap(lambda x, i: x[i])
        unit = Situation(algorithm, state, observation).unit(start.shape[1])
        move = picked((path - start[None]) / unit[None, None], index)
        return (
            picked(mean, index),
            picked(std, index),
            jnp.mean(move**2, axis=1),
            jnp.mean(mean, axis=1),
            jnp.std(mean[0]),
        )

    keys = jr.split(proposal_key, states)

    def over_states(step_size: Array) -> tuple[Array, ...]:
        return jax.lax.map(lambda at: one(step_size, *at), (next_observations, keys), batch_size=_STATES_AT_ONCE)

    chosen, std, moved, all_mean, spread = jax.vmap(over_states)(step_sizes)
    unit = jnp.maximum(jnp.mean(spread), jnp.finfo(chosen.dtype).tiny)
    gain = (chosen - chosen[:, :, :1]) / unit
    lower = gain - pessimism * (std - std[:, :, :1]) / unit
    targets = replay.returns[rows][None, :, None] + replay.discounts[rows][None, :, None] * all_mean
    error = jnp.sqrt(jnp.mean((targets - predictions[None, :, None]) ** 2, axis=1))
    return (
        jnp.mean(gain, axis=1),
        jnp.mean(lower, axis=1),
        jnp.std(lower, axis=1) / math.sqrt(states),
        _relative(jnp.mean(std, axis=1)),
        jnp.sqrt(jnp.mean(moved, axis=1)),
        _relative(error),
    )


def _relative(numbers: Float[Array, "sizes steps"]) -> Float[Array, "sizes steps"]:
    """Return numbers over the first of their row, which is exactly 1."""
    ratio = numbers / jnp.maximum(numbers[:, :1], jnp.finfo(numbers.dtype).tiny)
    # XLA may multiply by a reciprocal, which takes a number by itself to 1 but for a rounding.
    return ratio.at[:, 0].set(1)
