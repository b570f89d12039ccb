"""Proximal policy optimisation of a language model, the baseline that trains: one iteration is one program."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree

from flowrl._custom_types import Key
from flowrl._misc import check_count, check_fields, concrete, number_field
from flowrl.rlhf.alignment import score
from flowrl.rlhf.learning._ppo_terms import clipped_error, clipped_surrogate, gae, masked_mean, whiten
from flowrl.rlhf.models import AbstractReward, Dense, LanguageModel, Prompt, Sampler, Transformer

Metrics = dict[str, Float[Array, ""]]


class ValueModel(eqx.Module):
    """The value of a response that has begun, token by token.

    Attributes:
        trunk: the transformer.
        head: hidden state to value; 0 at the start.
    """

    # A trunk of its own, which starts as the reference's: the loss of the values then does not pull at what the policy
    # reads, and no weight between the two losses has to be tuned to the scale of a reward. It costs a second network.
    trunk: Transformer
    head: Dense

    def __init__(self, trunk: Transformer):
        """Start as the zero function.

        Args:
            trunk: where it starts, the policy's trunk.
        """
        self.trunk = trunk
        self.head = Dense(trunk.config.width, 1, bias=True, key=jr.key(0), scale=0.0)

    def __call__(self, prompt: Prompt, tokens: Int[Array, " T"], mask: Bool[Array, " T"]) -> Float[Array, " T"]:
        """Return the value before each token of a response; 0 at padding."""
        values = self.head(_states(self.trunk, prompt, tokens, mask))[:, 0].astype(jnp.float32)
        return jnp.where(mask, values, 0)


class Rollout(eqx.Module):
    """Responses, and what their updates need; all of it belongs to the policy that wrote them."""

    prompt: Prompt
    tokens: Int[Array, "B T"]
    mask: Bool[Array, "B T"]
    log_probs: Float[Array, "B T"]
    values: Float[Array, "B T"]
    advantages: Float[Array, "B T"]
    returns: Float[Array, "B T"]


class PPOState(eqx.Module):
    """Everything that a run of `PPO` needs to go on.

    Attributes:
        policy: the language model that is trained.
        value: its value model.
        optimiser: states of the optimisers of both.
        key: randomness of what follows.
        step: iterations so far `()`.
    """

    policy: LanguageModel
    value: ValueModel
    optimiser: PyTree
    key: Key
    step: Int[Array, ""]


_BETA = number_field("beta", lambda beta: (beta >= 0) & (beta < np.inf), ">= 0 and finite", jnp.float32)
_RATE = number_field("a learning rate", lambda rate: (rate > 0) & (rate < np.inf), "> 0", jnp.float32)


class PPO(eqx.Module):
    r"""Proximal policy optimisation of $E_π[r] - β\,KL(π | μ)$ for a reward r and a reference μ.

    A response is an episode and a token an action. The reward of a token is $-β \log π/μ$ of it, and the last one has
    the reward model's r besides; nothing is discounted. Each iteration draws responses, gives their tokens advantages
    by GAE(λ), whitens these over all tokens, and goes over the responses several times in minibatches: the surrogate
    $\min(ρA, \mathrm{clip}(ρ, 1 ± ε)A)$ for the policy and a clipped squared error for the values, by Adam.

    π and μ are those of the tokens that the sampler may draw: weight on forbidden ones is no part of ratios and KL.

    Attributes:
        sampler: how responses are drawn: at temperature 1 and without nucleus, or they would not be the policy's.
        beta: β >= 0, the weight of the divergence from the reference, in units of the reward.
        learning_rate: of the policy's Adam.
        value_learning_rate: of the value model's Adam.
        rollouts: responses of an iteration. With fewer prompts than that, several responses to a prompt.
        epochs: how often an iteration goes over its responses.
        minibatches: updates of one epoch, a divisor of `rollouts`.
        gae_lambda: λ in [0, 1]; at 1 advantages have no bias, below it less variance.
        ratio_clip: ε in (0, 1).
        value_clip: how far a value may move in an iteration, in units of the reward; infinity for no limit.
        clip: largest norm of a gradient, for policy and values apart.
        at_once: responses that are drawn and read together, which bounds the memory.

    Raises:
        ValueError: a number is out of range, or the sampler draws from another distribution than the policy.

    ??? cite "Source"
        Schulman et al., *Proximal Policy Optimization Algorithms*, arXiv 1707.06347, 2017, eq. 7. Schulman et al.,
        *High-Dimensional Continuous Control Using Generalized Advantage Estimation*, ICLR 2016, eq. 16. The reward of a
        token is that of Ziegler et al., *Fine-Tuning Language Models from Human Preferences*, arXiv 1909.08593, 2019;
        Stiennon et al., *Learning to summarize from human feedback*, NeurIPS 2020, whose values have a network of their
        own too; and Ouyang et al., *Training language models to follow instructions with human feedback*, NeurIPS 2022.
    """

    sampler: Sampler
    # Arrays, so that a new value is not a new program.
    beta: Float[Array, ""] = eqx.field(converter=_BETA, default=0.1)
    learning_rate: Float[Array, ""] = eqx.field(converter=_RATE, default=1e-4)
    value_learning_rate: Float[Array, ""] = eqx.field(converter=_RATE, default=3e-4)
    rollouts: int = eqx.field(static=True, default=64)
    epochs: int = eqx.field(static=True, default=4)
    minibatches: int = eqx.field(static=True, default=4)
    gae_lambda: float = eqx.field(static=True, default=0.95)
    ratio_clip: float = eqx.field(static=True, default=0.2)
    value_clip: float = eqx.field(static=True, default=0.2)
    clip: float = eqx.field(static=True, default=1.0)
    at_once: int = eqx.field(static=True, default=32)

    def __check_init__(self):
        check_fields(
            self,
            counts=("rollouts", "epochs", "minibatches", "at_once"),
            positive=("clip",),
            shares=("gae_lambda",),
        )
        if self.rollouts % self.minibatches:
            raise ValueError(
                f"rollouts must be a multiple of minibatches, got {self.rollouts} and {self.minibatches}: every "
                "response is in one minibatch of an epoch."
            )
        if not 0 < self.ratio_clip < 1:
            raise ValueError(f"PPO: ratio_clip must be in (0, 1), got {self.ratio_clip}.")
        if not self.value_clip > 0:  # infinity is no limit
            raise ValueError(f"PPO: value_clip must be > 0, got {self.value_clip}.")
        temperature = concrete(self.sampler.temperature)
        if temperature is None or np.any(temperature != 1) or self.sampler.top_p != 1:
            raise ValueError(
                "PPO needs responses of the policy itself: the sampler must have temperature=1.0 and top_p=1.0, got "
                f"{self.sampler.temperature} and {self.sampler.top_p}."
            )

    def start(self, model: LanguageModel, *, key: Key) -> PPOState:
        """Return the state before the first iteration.

        Args:
            model: what the policy starts as: the reference. In float32, or Adam's steps are lost to rounding.
            key: randomness.
        """
        value = ValueModel(model.trunk)
        moments = tuple(self._optimiser().init(eqx.filter(part, eqx.is_inexact_array)) for part in (model, value))
        return PPOState(model, value, moments, key, jnp.zeros((), jnp.int32))

    @eqx.filter_jit
    def step(
        self, state: PPOState, reference: LanguageModel, reward: AbstractReward, prompts: Prompt
    ) -> tuple[PPOState, Metrics]:
        """Run one iteration: draw responses, and update policy and values on them.

        Returns the new state and the iteration's metrics. Of the policy before the updates: "reward" and "kl", the
        means over responses of the reward and of KL(π | μ) in nats of a whole response, exact at each token of the
        drawn texts; "entropy", the mean over tokens; "length", the mean number of tokens. Means over the updates:
        "clip_fraction", the share of tokens whose ratio ends outside the clip, and "value_loss".

        Args:
            state: from `start` or an earlier iteration.
            reference: μ, which stays as it is.
            reward: the reward model.
            prompts: those that an iteration draws from without repetition, as far as they go, (rows, P).

        Raises:
            ValueError: policy, reference and reward model read different tokens.
        """
        _check_same_tokens(state.policy, reference, reward)
        key, draw_key, shuffle_key = jr.split(state.key, 3)
        rollout, seen = self._roll_out(state, reference, reward, prompts, draw_key)
        policy, value, optimiser, updates = self._update(state, rollout, shuffle_key)
        return PPOState(policy, value, optimiser, key, state.step + 1), seen | updates

    def _log_probs(
        self, model: LanguageModel, prompt: Prompt, tokens: Int[Array, " T"], mask: Bool[Array, " T"]
    ) -> Float[Array, "T V"]:
        """Log-probabilities, among the tokens that may be drawn, before each token of a response."""
        logits = model.logits(_states(model.trunk, prompt, tokens, mask)).astype(jnp.float32)
        return jax.nn.log_softmax(self.sampler.allowed(logits))

    def _roll_out(
        self, state: PPOState, reference: LanguageModel, reward: AbstractReward, prompts: Prompt, key: Key
    ) -> tuple[Rollout, Metrics]:
        """Draw responses, score them, and give their tokens advantages."""
        draw_key, sample_key = jr.split(key)
        count = prompts.tokens.shape[0]
        rows = jr.permutation(draw_key, count)[jnp.arange(self.rollouts) % count]
        prompts = jax.tree.map(lambda leaf: leaf[rows], prompts)
        drawn = jax.lax.map(
            lambda row: self.sampler.sample(state.policy, row[0], key=row[1]),
            (prompts, jr.split(sample_key, self.rollouts)),
            batch_size=self.at_once,
        )
        tokens, mask = drawn.tokens, drawn.mask
        rewards = score(reward, prompts, tokens[:, None], mask[:, None], self.at_once)[:, 0].astype(jnp.float32)

        # The sampler's own log_probs are of all tokens, and of one token at a time: read again as the updates read
        # them, the ratio is 1 before the first update.
        def read(row: tuple[Prompt, Array, Array]) -> tuple[Array, ...]:
            prompt, tokens, mask = row
            policy = self._log_probs(state.policy, prompt, tokens, mask)
            gap = policy - self._log_probs(reference, prompt, tokens, mask)
            chosen = (_at(policy, tokens), _at(gap, tokens))
            divergence, entropy = (jnp.sum(jnp.exp(policy) * part, axis=1) for part in (gap, -policy))
            here = [jnp.where(mask, part, 0) for part in (*chosen, divergence, entropy)]
            return *here, state.value(prompt, tokens, mask)

        log_probs, gap, divergence, entropy, values = jax.lax.map(
            read, (prompts, tokens, mask), batch_size=self.at_once
        )
        last = mask & ~jnp.pad(mask[:, 1:], ((0, 0), (0, 1)))
        token_rewards = jnp.where(last, rewards[:, None], 0) - self.beta * gap
        advantages = jax.vmap(lambda r, v, m: gae(r, v, m, self.gae_lambda))(token_rewards, values, mask)
        # Once for all updates, so that a minibatch of little luck is not one of another scale.
        rollout = Rollout(prompts, tokens, mask, log_probs, values, whiten(advantages, mask), advantages + values)
        metrics = {
            "reward": jnp.mean(rewards),
            "kl": jnp.mean(jnp.sum(divergence, axis=1)),
            "entropy": masked_mean(entropy, mask),
            "length": jnp.mean(jnp.sum(mask, axis=1).astype(jnp.float32)),
        }
        return rollout, metrics

    def _losses(self, models: tuple[LanguageModel, ValueModel], batch: Rollout) -> tuple[Array, Metrics]:
        """The sum of the losses of policy and values, which have no weight in common, and what is reported."""
        policy, value = models

        def one(prompt: Prompt, tokens: Array, mask: Array) -> tuple[Array, Array]:
            log_probs = _at(self._log_probs(policy, prompt, tokens, mask), tokens)
            return jnp.where(mask, log_probs, 0), value(prompt, tokens, mask)

        log_probs, values = jax.vmap(one)(batch.prompt, batch.tokens, batch.mask)
        surrogate = clipped_surrogate(log_probs, batch.log_probs, batch.advantages, self.ratio_clip)
        errors = clipped_error(values, batch.values, batch.returns, self.value_clip)
        outside = jnp.abs(jnp.exp(log_probs - batch.log_probs) - 1) > self.ratio_clip
        value_loss = masked_mean(errors, batch.mask)
        metrics = {"clip_fraction": masked_mean(outside.astype(jnp.float32), batch.mask), "value_loss": value_loss}
        return value_loss - masked_mean(surrogate, batch.mask), metrics

    def _update(self, state: PPOState, rollout: Rollout, key: Key) -> tuple[LanguageModel, ValueModel, PyTree, Metrics]:
        """Go over the responses, `epochs` times in `minibatches` minibatches."""
        weights, static = eqx.partition((state.policy, state.value), eqx.is_inexact_array)
        optimiser, rates = self._optimiser(), (self.learning_rate, self.value_learning_rate)
        orders = jax.vmap(lambda k: jr.permutation(k, self.rollouts))(jr.split(key, self.epochs))

        def descend(rate: Array, weights: PyTree, gradient: PyTree, moments: PyTree) -> tuple[PyTree, PyTree]:
            with jax.numpy_dtype_promotion("standard"):  # optax raises a float32 rate to an integer power
                move, moments = optimiser.update(gradient, moments, weights)
            return jax.tree.map(lambda w, m: w - (rate * m.astype(rate.dtype)).astype(w.dtype), weights, move), moments

        def update(carry, rows):
            weights, moments = carry
            batch = jax.tree.map(lambda leaf: leaf[rows], rollout)
            gradients, metrics = jax.grad(lambda w: self._losses(eqx.combine(w, static), batch), has_aux=True)(weights)
            policy, value = (descend(r, w, g, m) for r, w, g, m in zip(rates, weights, gradients, moments, strict=True))
            return ((policy[0], value[0]), (policy[1], value[1])), metrics

        minibatches = orders.reshape(self.epochs * self.minibatches, -1)
        (weights, moments), metrics = jax.lax.scan(update, (weights, state.optimiser), minibatches)
        policy, value = eqx.combine(weights, static)
        return policy, value, moments, jax.tree.map(jnp.mean, metrics)

    def _optimiser(self) -> optax.GradientTransformation:
        return optax.chain(optax.clip_by_global_norm(self.clip), optax.scale_by_adam(eps=1e-5))


def ppo_update(
    ppo: PPO,
    state: PPOState,
    reference: LanguageModel,
    reward: AbstractReward,
    prompts: Prompt,
    *,
    iterations: int,
    report: Callable[[PPOState, dict[str, float]], None] | None = None,
) -> PPOState:
    """Run PPO until a number of iterations is reached; the `policy` of the returned state is the aligned model.

    Args:
        ppo: the settings.
        state: where to begin: `ppo.start(model, key=key)`, or a state kept by `report`.
        reference: μ, which stays as it is.
        reward: the reward model.
        prompts: those that iterations draw from, (rows, P).
        iterations: the number at which it ends; those that the state has behind it count.
        report: called after every iteration with the state, {"step"} and the metrics of `PPO.step`; the place for a
            checkpoint and a progress bar.

    Raises:
        ValueError: no prompts, `iterations` < 1, or models that read different tokens.
        FloatingPointError: a metric is not finite; the message names it and the iteration.
    """
    check_count("iterations", iterations)
    if prompts.tokens.ndim != 2 or prompts.tokens.shape[0] == 0:
        raise ValueError(f"prompts must be rows (rows, P), at least one, got shape {prompts.tokens.shape}.")
    prompts = jax.tree.map(jnp.asarray, prompts)
    while int(state.step) < iterations:
        state, metrics = ppo.step(state, reference, reward, prompts)
        numbers = {name: float(value) for name, value in metrics.items()}
        broken = {name: value for name, value in numbers.items() if not np.isfinite(value)}
        if broken:
            raise FloatingPointError(
                f"iteration {int(state.step)} of PPO: {broken}; lower learning_rate or clip, or look for rewards that "
                "are not finite."
            )
        if report is not None:
            report(state, {"step": int(state.step), **numbers})
    return state


def _states(
    trunk: Transformer, prompt: Prompt, tokens: Int[Array, " T"], mask: Bool[Array, " T"]
) -> Float[Array, "T d"]:
    """The hidden states from which each token of a response is drawn."""
    # As `response_logits`, but a vocabulary is only multiplied where a response is.
    room = prompt.tokens.shape[0] + tokens.shape[0]
    first, cache = trunk.extend(trunk.empty(room), trunk.embed(prompt.tokens), prompt.mask)
    last = jnp.max(jnp.where(prompt.mask, jnp.arange(prompt.mask.shape[0]), 0))
    rest, _ = trunk.extend(cache, trunk.embed(tokens), mask)
    return jnp.concatenate([first[last][None], rest[:-1]])


def _at(table: Float[Array, "T V"], tokens: Int[Array, " T"]) -> Float[Array, " T"]:
    return jnp.take_along_axis(table, tokens[:, None], axis=1)[:, 0]


def _check_same_tokens(policy: LanguageModel, reference: LanguageModel, reward: AbstractReward) -> None:
    known = {"policy": policy.tokens, "reference": reference.tokens, "reward model": reward.tokens}
    known = {name: tokens for name, tokens in known.items() if tokens is not None}
    if len(set(known.values())) > 1:
        raise ValueError(
            f"policy, reference and reward model must read tokens of one tokenizer, got fingerprints {known}."
        )
    sizes = policy.trunk.config.vocabulary, reference.trunk.config.vocabulary
    if sizes[0] != sizes[1]:
        raise ValueError(f"policy and reference must have one vocabulary, got {sizes[0]} and {sizes[1]} tokens.")
