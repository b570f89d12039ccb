"""The methods that `rlhf.py` compares: each answers the test prompts, and is measured in the same way."""

import time
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from rlhf_config import Config
from rlhf_learning import fitted, kept, options_of, spread_of, stored
from rlhf_report import Answer, describe, measure, summary, verdict
from rlhf_task import Batch, Report, Task

from flowrl import SVGD, Ascent, Budget
from flowrl.rlhf import (
    DPO,
    PPO,
    AbstractReward,
    AbstractSpace,
    Fit,
    LanguageModel,
    Limits,
    LogitSpace,
    Pairs,
    ReferenceSpace,
    Response,
    RewardEnsemble,
    TokenSpace,
    align,
    check_tokens,
    choose_steps,
    hacking_starts,
    optimise,
    sample,
    score,
    with_reference,
)
from flowrl.runs import RunDirectory, save_checkpoint

_PPO_INTERVAL = 10  # iterations between two checkpoints


def space_of(config: Config, task: Task) -> AbstractSpace:
    """Give the space that was named."""
    if config.space == "reference":
        return ReferenceSpace(task.model, task.sampler)
    if config.space.startswith("logit"):
        return LogitSpace(task.model, task.sampler, by="reference" if config.space.endswith("reference") else "argmax")
    return TokenSpace(task.model, task.sampler, by="prior" if config.space.endswith("prior") else "nearest")


class Answers:
    """The answers of every method, measured; what is done already is not done again."""

    def __init__(
        self,
        config: Config,
        task: Task,
        reward: AbstractReward,
        run: RunDirectory,
        show: Report,
        rows: list[dict[str, Any]],
    ):
        self.config, self.task, self.reward, self.run, self.show = config, task, reward, run, show
        check_tokens(space_of(config, task), reward)
        self.spread = spread_of(config, task, reward)
        self.rows, self.notes = rows, [str(note) for note in run.arrays.get("notes", ())]
        self.base, _ = sample(
            task.sampler, task.model, task.test.prompt, count=config.reference_samples, key=jr.key(77)
        )
        self.measured = describe(task, reward, task.test, self.base.tokens, self.base.mask)

    def add(self, method: str, pairs: dict[str, Pairs] | None) -> None:
        """Answer the test prompts by one method."""
        if any(row["method"] == method for row in self.rows):
            return
        made = getattr(self, f"_{method}")(pairs)
        for answer in made:
            self.rows += measure(self.task, self.reward, self.measured, method, answer)
        self.run.rows = self.rows
        self.run.save({"methods": jnp.zeros((), jnp.int32)}, {"notes": np.asarray(self.notes, np.str_)})

    def _draw(self, model: LanguageModel, batch: Batch, count: int) -> tuple[Response, Any]:
        key = jr.key(self.config.seed + 78)
        return sample(self.task.sampler, model, batch.prompt, count=count, key=key)

    def _best(
        self, model: LanguageModel, counts: Sequence[int], names: Sequence[str], train_seconds: float = 0.0
    ) -> list[Answer]:
        """Best-of-N for several N: of N samples of the model, the one of the highest proxy reward.

        The samples of a smaller N are the first ones of a larger N; its time is in proportion.
        """
        begun, most = time.perf_counter(), max(counts)
        drawn, _ = self._draw(model, self.task.test, most)
        rewards = np.asarray(score(self.reward, self.task.test.prompt, drawn.tokens, drawn.mask))
        seconds, rows = (time.perf_counter() - begun) / most, np.arange(len(rewards))
        answers = []
        for count, name in zip(counts, names, strict=True):
            best = np.argmax(rewards[:, :count], axis=1)
            tokens, mask = (np.asarray(leaf)[rows, best] for leaf in (drawn.tokens, drawn.mask))
            cost = _cost_of_best(self, count)
            answers.append(Answer(name, tokens, mask, None, 0, count, seconds * count, train_seconds, cost))
        return answers

    def _sft(self, pairs: Any) -> list[Answer]:
        del pairs
        tokens, mask = np.asarray(self.base.tokens[:, 0]), np.asarray(self.base.mask[:, 0])
        return [Answer("SFT", tokens, mask, None, 0, 1, 0, 0, 1)]

    def _bon(self, pairs: Any) -> list[Answer]:
        del pairs
        counts = self.config.best_of
        return self._best(self.task.model, counts, [f"best-of-{count}" for count in counts])

    def _dpo(self, pairs: dict[str, Pairs]) -> list[Answer]:
        config, begun = self.config, time.perf_counter()
        train, held = (with_reference(self.task.model, pairs[part]) for part in ("train", "validation"))
        plan = Fit(config.dpo_steps, 64, 1e-3, weight_decay=0.0, interval=20, patience=3)
        key = jr.key(config.seed + 9)
        model = fitted(
            self.run,
            "dpo",
            self.task.model,
            DPO(config.dpo_beta),
            plan,
            key,
            train,
            held,
            self.show,
            options_of(config),
        )
        seconds = time.perf_counter() - begun
        counts = (1, config.particles)
        return self._best(model, counts, ("DPO", f"DPO, best-of-{config.particles}"), seconds)

    def _ppo(self, pairs: Any) -> list[Answer]:
        del pairs
        config, begun = self.config, time.perf_counter()
        ppo = PPO(self.task.sampler, beta=config.ppo_beta * self.spread)
        state = ppo.start(self.task.model, key=jr.key(config.seed + 10))

        half = self.run.path / "ppo.part.npz"

        def make() -> Any:
            found = stored(half, state, options_of(config))
            start = state if found is None else found

            def report(now: Any, row: dict[str, float]) -> None:
                self.show("PPO", int(row["step"]), config.ppo_iterations)
                if int(row["step"]) % _PPO_INTERVAL == 0:
                    save_checkpoint(half, now, {"of": options_of(config)})

            prompts = self.task.train.prompt
            rounds = config.ppo_iterations
            return optimise(ppo, start, self.task.model, self.reward, prompts, iterations=rounds, report=report)

        model = kept(self.run, "ppo", state, make, options_of(config)).policy
        half.unlink(missing_ok=True)
        counts = (1, config.particles)
        seconds = time.perf_counter() - begun
        return self._best(model, counts, ("PPO", f"PPO, best-of-{config.particles}"), seconds)

    def _flow(self, batch: Batch, step_size: float) -> tuple[Any, Response, float]:
        """All numbers of steps at one step size."""
        config, begun = self.config, time.perf_counter()
        drawn, keys = self._draw(self.task.model, batch, config.particles)
        temperature = config.temperature * self.spread if config.flow == "svgd" else None
        budget = Budget(
            config.steps[-1], step_size / self.spread, temperature, max_displacement=config.max_displacement
        )
        flow = SVGD() if config.flow == "svgd" else Ascent()
        aligned = align(
            space_of(config, self.task),
            self.reward,
            batch.prompt,
            drawn,
            keys,
            budget,
            flow=flow,
            save=(0, *config.steps),
        )
        jax.block_until_ready(aligned.tokens)
        return aligned, drawn, time.perf_counter() - begun

    def _vgf(self, pairs: Any) -> list[Answer]:
        del pairs
        config = self.config
        limits = Limits(config.nll_band, config.variety)
        candidates, names, selected, starts = [], [], None, []
        batch = self.task.validation
        drawn, _ = self._draw(self.task.model, batch, config.reference_samples)
        base = describe(self.task, self.reward, batch, drawn.tokens, drawn.mask)
        for done, step_size in enumerate(config.step_sizes):
            aligned, _, _ = self._flow(batch, step_size)
            texts = []
            for k in range(1 + len(config.steps)):
                tokens, mask = aligned.best(k)
                texts.append(summary(self.task, self.reward, batch, tokens, mask))
            selected = texts[0]
            candidates += texts[1:]
            names += [(step_size, steps) for steps in config.steps]
            start = hacking_starts(texts, base.nll, config.nll_band)
            starts.append("" if start is None else f"ε = {step_size:g} from L = {(0, *config.steps)[start]}")
            self.show("choosing the budget", done + 1, len(config.step_sizes))
        assert selected is not None
        chosen = choose_steps(candidates, selected, base.nll, limits)
        self.notes.append(verdict(names, candidates, chosen))
        if any(starts):
            self.notes.append(
                "warning: on the validation prompts the proxy reward rises while the texts leave the reference's NLL "
                f"band ({'; '.join(s for s in starts if s)}): beyond this the reward model is being deceived"
            )
        best = None if chosen.index is None else names[chosen.index]
        answers = []
        for done, step_size in enumerate(config.step_sizes):
            aligned, drawn, seconds = self._flow(self.task.test, step_size)
            for k, steps in enumerate((0, *config.steps)):
                if steps == 0 and done:
                    continue
                tokens, mask = (np.asarray(x) for x in aligned.best(k))
                name = "VGF, L = 0" if steps == 0 else f"VGF, ε = {step_size:g}, L = {steps}"
                is_chosen = best == (step_size, steps) or (best is None and steps == 0)
                rows = np.arange(len(tokens))
                start = np.asarray(drawn.tokens)[rows, np.asarray(aligned.chosen[k])]
                cost = _cost_of_flow(self, steps)
                # One flow serves all L: its time is that of the longest.
                own = seconds * steps / config.steps[-1] if steps else 0.0
                answers.append(
                    Answer(name, tokens, mask, start, steps, config.particles, own, 0, cost, step_size, is_chosen)
                )
            self.show("VGF", done + 1, len(config.step_sizes))
        return answers


def _matrix_sizes(answers: Answers) -> tuple[float, float, float]:
    """Multiplications a token: a sample of the reference, the reward, the token table."""

    def blocks(trunk: Any) -> float:
        return sum(leaf.size for leaf in jax.tree.leaves(eqx.filter(trunk.blocks, eqx.is_array)))

    reward = answers.reward
    vocabulary, width = reward.embedding.shape
    table = float(vocabulary * width)
    trunk = reward.members.trunk if isinstance(reward, RewardEnsemble) else reward.trunk  # pyright: ignore
    # The stacked members are counted all at once.
    return blocks(answers.task.model.trunk) + float(answers.task.model.trunk.embedding.size), blocks(trunk), table


def _cost_of_best(answers: Answers, count: int) -> float:
    """Forward passes of the reference over one response that best-of-N costs a prompt."""
    sampled, rewarded, _ = _matrix_sizes(answers)
    return count * (sampled + rewarded) / sampled


def _cost_of_flow(answers: Answers, steps: int) -> float:
    """The same of VGF: sampling, forward and backward passes of the reward, decodings, and the rewards of the texts."""
    sampled, rewarded, table = _matrix_sizes(answers)
    space = answers.config.space
    decodes = 1.0 if space in ("reference", "logit-reference", "token-prior") and steps else 0.0
    encodes = 1.0 if space.startswith("logit") and steps else 0.0
    step = 3 * rewarded + {"reference": sampled + table}.get(space, 2 * table if space.startswith("logit") else table)
    whole = (1 + decodes + encodes) * sampled + steps * step + rewarded
    return answers.config.particles * whole / sampled
