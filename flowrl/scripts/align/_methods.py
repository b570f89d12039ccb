"""The methods that are compared: each answers the test prompts, and is measured in the same way."""

import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from flowrl import SVGD, Ascent, Budget, Euler, Monotone
from flowrl.rlhf import (
    DPO,
    PPO,
    AbstractReward,
    AbstractSpace,
    Aligned,
    Fit,
    LanguageModel,
    Limits,
    LogitSpace,
    Pairs,
    Prompt,
    ReferenceSpace,
    TokenSpace,
    align,
    check_tokens,
    choose_steps,
    hacking_starts,
    ppo_update,
    sample,
    score,
    with_reference,
)
from flowrl.rlhf.alignment import Costs
from flowrl.rlhf.evaluation import CommandJudge
from flowrl.runs import RunDirectory, save_checkpoint
from flowrl.scripts.align._learning import fitted, in_spreads, kept, stored
from flowrl.scripts.align._options import Config, key_of
from flowrl.scripts.align._parts import Parts
from flowrl.scripts.align._report import Answer, describe, measure, summary, verdict
from flowrl.scripts.align._task import Batch, Report, Task

_PPO_INTERVAL = 10  # iterations between two checkpoints
_AT_ONCE = 1024  # samples that are worked on together, which bounds the memory
_MOST = 512  # N of the best-of-N that is drawn at VGF's cost at most


def space_of(config: Config, task: Task) -> AbstractSpace:
    """Return the space that was named."""
    name = config.budget.space
    if name == "reference":
        return ReferenceSpace(task.model, task.sampler)
    if name.startswith("logit"):
        return LogitSpace(task.model, task.sampler, by="reference" if name.endswith("reference") else "argmax")
    return TokenSpace(task.model, task.sampler, by="prior" if name.endswith("prior") else "nearest")


class Answers:
    """The answers of every method, measured; what is done already is not done again.

    `train_seconds` are what a method spends before its first answer, given the reference and the preferences: the
    reward models, the policy, the choice of the budget, with their compilations. `seconds` are those of all answers.
    """

    def __init__(
        self,
        config: Config,
        task: Task,
        reward: AbstractReward,
        reward_seconds: float,
        pairs: dict[str, Pairs] | None,
        run: RunDirectory,
        show: Report,
        rows: list[dict[str, Any]],
    ):
        self.config, self.task, self.reward, self.run, self.show = config, task, reward, run, show
        self.reward_seconds, self.pairs, self.parts = reward_seconds, pairs, Parts()
        self.judge = CommandJudge(config.evaluation.judge) if config.evaluation.judge else None
        check_tokens(space_of(config, task), reward)
        self.costs = Costs.of(task.model, reward, task.test.prompt.tokens.shape[1], config.inputs.length)
        self.in_spreads = in_spreads(config, task, reward)
        self.rows, self.notes = rows, [str(note) for note in run.arrays.get("notes", ())]
        tokens, mask, _ = self._drawn(task.model, task.test, config.evaluation.reference_samples, "comparison")[0]
        self.measured = describe(task, reward, task.test, tokens, mask)

    def add(self, method: str) -> None:
        """Answer the test prompts by one method."""
        if any(row["method"] == method for row in self.rows):
            return
        answer_by = {"sft": self._sft, "bon": self._bon, "dpo": self._dpo, "ppo": self._ppo, "vgf": self._vgf}
        for answer in answer_by[method]():
            self.rows.append(measure(self.task, self.reward, self.measured, answer, self.judge))
        self.run.rows = self.rows
        self.run.save({"methods": jnp.zeros((), jnp.int32)}, {"notes": np.asarray(self.notes, np.str_)})

    def _drawn(self, model: LanguageModel, batch: Batch, count: int, purpose: str) -> tuple[Any, float]:
        """Tokens, masks and rewards (B, N, ...) of samples; the first ones are those of every smaller N."""
        key = key_of(self.config, purpose)

        def program(prompts: Prompt, part: int) -> Any:
            at_once = max(_AT_ONCE // count, 1)
            own = jr.fold_in(key, part)
            drawn, _ = sample(self.task.sampler, model, prompts, count=count, key=own, at_once=at_once)
            return drawn.tokens, drawn.mask, score(self.reward, prompts, drawn.tokens, drawn.mask, at_once)

        leaves, seconds = self.parts(("samples", count), batch, program)
        if not np.isfinite(leaves[2]).all():
            texts = self.task.decode(*(leaf[~np.isfinite(leaves[2])][:1] for leaf in leaves[:2]))
            raise FloatingPointError(f"the reward model gives no finite number for {texts[0]!r}.")
        return leaves, seconds

    def _best(self, method: str, model: LanguageModel, counts: dict[int, str], train_seconds: float) -> list[Answer]:
        """Best-of-N for several N: of N samples of the model, the one of the highest proxy reward."""
        answers = []
        for count, name in counts.items():
            (tokens, mask, rewards), seconds = self._drawn(model, self.task.test, count, "test")
            rows, best = np.arange(len(rewards)), np.argmax(rewards, axis=1)
            cost = self.costs.best_of(count) if count > 1 else self.costs.samples(1)
            spent = train_seconds + (self.reward_seconds if count > 1 and method != "ppo" else 0.0)
            answers.append(
                Answer(method, name, tokens[rows, best], mask[rows, best], None, 0, count, seconds, spent, cost)
            )
        return answers

    def _sft(self) -> list[Answer]:
        return self._best("sft", self.task.model, {1: "SFT"}, 0.0)

    def _bon(self) -> list[Answer]:
        return self._best("bon", self.task.model, {n: f"best-of-{n}" for n in self.config.evaluation.best_of}, 0.0)

    def _policy(self, method: str, model: LanguageModel, seconds: float) -> list[Answer]:
        name, several = method.upper(), self.config.budget.particles
        return self._best(method, model, {1: name, several: f"{name}, best-of-{several}"}, seconds)

    def _dpo(self) -> list[Answer]:
        config, pairs, begun = self.config, self.pairs, time.perf_counter()
        assert pairs is not None
        train, held = (with_reference(self.task.model, pairs[part]) for part in ("train", "validation"))
        jax.block_until_ready((train, held))
        before = time.perf_counter() - begun
        plan = Fit(config.learning.dpo_steps, 64, 1e-3, weight_decay=0.0, interval=20, patience=3)
        loss, key = DPO(config.learning.dpo_beta), key_of(config, "dpo")
        model, seconds = fitted(
            self.run, "dpo", self.task.model, loss, plan, key, train, held, self.show, config.learned_from()
        )
        return self._policy("dpo", model, before + seconds)

    def _ppo(self) -> list[Answer]:
        config = self.config
        ppo = PPO(self.task.sampler, beta=config.learning.ppo_beta * self.in_spreads.spread)
        state = ppo.start(self.task.model, key=key_of(config, "ppo"))
        half = self.run.path / "ppo.part.npz"

        def make() -> tuple[Any, float]:
            found = stored(half, state, config.learned_from())
            start, before = (state, 0.0) if found is None else found
            begun = time.perf_counter() - before

            def report(now: Any, row: dict[str, float]) -> None:
                self.show("PPO", int(row["step"]), config.learning.ppo_iterations)
                if int(row["step"]) % _PPO_INTERVAL == 0:
                    save_checkpoint(half, now, {"of": config.learned_from(), "seconds": time.perf_counter() - begun})

            prompts = self.task.train.prompt
            rounds = config.learning.ppo_iterations
            done = ppo_update(ppo, start, self.task.model, self.reward, prompts, iterations=rounds, report=report)
            return done, time.perf_counter() - begun

        done, seconds = kept(self.run, "ppo", state, make, config.learned_from())
        half.unlink(missing_ok=True)
        return self._policy("ppo", done.policy, self.reward_seconds + seconds)

    def _flow(self, batch: Batch, purpose: str, step_size: float, save: tuple[int, ...]) -> tuple[Aligned, Any, float]:
        """Some numbers of steps at one step size: texts, the samples they began as, seconds."""
        config, key = self.config, key_of(self.config, purpose)
        options = config.budget
        temperature = options.temperature if options.flow == "svgd" else None
        budget = Budget(save[-1], step_size, temperature, max_displacement=options.max_displacement)
        flow = SVGD() if options.flow == "svgd" else Ascent()
        solver = Monotone() if options.moves == "rising" else Euler()
        space = space_of(config, self.task)

        def program(prompts: Prompt, part: int) -> Any:
            drawn, keys = sample(
                self.task.sampler, self.task.model, prompts, count=options.particles, key=jr.fold_in(key, part)
            )
            aligned = align(space, self.in_spreads, prompts, drawn, keys, budget, flow=flow, solver=solver, save=save)
            return _swap_budgets_and_prompts(aligned), drawn.tokens

        (aligned, start), seconds = self.parts(("flow", save), batch, program)
        return _swap_budgets_and_prompts(aligned), start, seconds

    def _vgf(self) -> list[Answer]:
        config, begun = self.config, time.perf_counter()
        best = self._choice()
        train_seconds = self.reward_seconds + time.perf_counter() - begun
        answers, save = [], (0, *config.budget.steps)
        for done, step_size in enumerate(config.budget.step_sizes):
            aligned, start, _ = self._flow(self.task.test, "test", step_size, save)
            for k, steps in enumerate(save):
                if steps == 0 and done:
                    continue
                tokens, mask = (np.asarray(x) for x in aligned.best(k))
                name = "VGF, L = 0" if steps == 0 else f"VGF, ε = {step_size:g}, L = {steps}"
                chosen = best == (step_size, steps) or (best is None and steps == 0)
                began = start[np.arange(len(tokens)), np.asarray(aligned.chosen[k])]
                cost = self._cost(steps)
                seconds = self._flow(self.task.test, "test", step_size, (steps,))[2] if chosen else None
                answers.append(
                    Answer(
                        "vgf",
                        name,
                        tokens,
                        mask,
                        began,
                        steps,
                        config.budget.particles,
                        seconds,
                        train_seconds,
                        cost,
                        step_size,
                        chosen,
                    )
                )
            self.show("VGF", done + 1, len(config.budget.step_sizes))
        cost = next(answer.forwards for answer in answers if answer.chosen)
        count = min(self.costs.matched(cost), _MOST)
        return answers + self._best("matched", self.task.model, {count: f"best-of-{count}, VGF's cost"}, 0.0)

    def _cost(self, steps: int) -> float:
        options = self.config.budget
        return self.costs.flow(options.space, options.particles, steps, rising=options.moves == "rising")

    def _choice(self) -> tuple[float, int] | None:
        """The budget that validation prompts choose without gold; None for no steps at all."""
        config, batch = self.config, self.task.validation
        count = config.evaluation.reference_samples
        tokens, mask, _ = self._drawn(self.task.model, batch, count, "validation comparison")[0]
        base = describe(self.task, self.reward, batch, tokens, mask)
        candidates, names, selected, starts = [], [], None, []
        for done, step_size in enumerate(config.budget.step_sizes):
            aligned, _, _ = self._flow(batch, "validation", step_size, (0, *config.budget.steps))
            texts = []
            for k, steps in enumerate((0, *config.budget.steps)):
                moved = float(jnp.mean(aligned.displacement[k]))
                cost = self._cost(steps)
                texts.append(summary(self.task, self.reward, batch, *aligned.best(k), moved, cost))
            selected = texts[0]
            candidates += texts[1:]
            names += [(step_size, steps) for steps in config.budget.steps]
            start = hacking_starts(texts, base.nll, config.budget.nll_band)
            starts.append("" if start is None else f"ε = {step_size:g} from L = {(0, *config.budget.steps)[start]}")
            self.show("choosing the budget", done + 1, len(config.budget.step_sizes))
        assert selected is not None
        chosen = choose_steps(candidates, selected, base.nll, Limits(config.budget.nll_band, config.budget.variety))
        self.notes.append(verdict(names, candidates, chosen))
        if any(starts):
            self.notes.append(
                "warning: on the validation prompts the proxy reward rises while the texts leave the reference's NLL "
                f"band ({'; '.join(s for s in starts if s)}): beyond this the reward model is being deceived"
            )
        return None if chosen.index is None else names[chosen.index]


def _swap_budgets_and_prompts(aligned: Aligned) -> Aligned:
    """Budgets before prompts become prompts before budgets, and the other way round."""
    names = [field.name for field in dataclasses.fields(aligned) if field.name != "nonfinite"]  # one per prompt
    return dataclasses.replace(aligned, **{name: jnp.swapaxes(getattr(aligned, name), 0, 1) for name in names})
