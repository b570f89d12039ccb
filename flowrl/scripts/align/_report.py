"""What is measured of answers, and how it is shown."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from flowrl.rlhf import AbstractReward, ChosenSteps, RewardEnsemble, TextStatistics, score
from flowrl.rlhf.evaluation import (
    CommandJudge,
    distinct_n,
    fraction_changed,
    judged_win_rate,
    vader_scores,
    win_rate,
)
from flowrl.scripts.align._task import Batch, Task


@dataclasses.dataclass(frozen=True)
class Answer:
    """One answer to each test prompt.

    `seconds` are those of all answers of the method, None where they were not timed by themselves.
    """

    method: str
    name: str
    tokens: np.ndarray
    mask: np.ndarray
    #: Tokens of the samples they were transported from, or None.
    start: np.ndarray | None
    steps: int
    count: int
    seconds: float | None
    train_seconds: float
    forwards: float
    step_size: float = 0.0
    chosen: bool = False


@dataclasses.dataclass(frozen=True)
class Reference:
    """The reference's own samples, (B, n): one text each, gold, proxy rewards, likelihoods; and people's gold (B,)."""

    texts: tuple[str, ...]
    gold: np.ndarray | None
    people: np.ndarray | None
    proxy: tuple[float, float]
    nll: tuple[float, float]


def describe(task: Task, reward: AbstractReward, batch: Batch, tokens: Any, mask: Any) -> Reference:
    """Measure samples of the reference, (B, n, T)."""
    count, length = tokens.shape[1], tokens.shape[2]
    gold = people = None
    texts = task.decode(np.asarray(tokens).reshape(-1, length), np.asarray(mask).reshape(-1, length))
    if task.gold is not None and task.judge is not None:
        log_p = task.judge.log_probs([text for text in batch.texts for _ in range(count)], texts)
        gold = task.gold(texts, log_p).reshape(-1, count)
        if batch.people is not None:
            people = task.gold(batch.people, task.judge.log_probs(batch.texts, batch.people))
    proxy = np.asarray(score(reward, batch.prompt, tokens, mask))
    nll = np.concatenate([task.nll(batch.prompt, tokens[:, i], mask[:, i]) for i in range(count)])
    return Reference(
        tuple(texts[::count]),
        gold,
        people,
        (float(proxy.mean()), float(proxy.std())),
        (float(nll.mean()), float(nll.std())),
    )


def summary(
    task: Task, reward: AbstractReward, batch: Batch, tokens: Any, mask: Any, moved: float, forwards: float
) -> TextStatistics:
    """Measure texts (B, T), whose particles moved so far and which cost so much, without the gold score."""
    rewards = np.asarray(score(reward, batch.prompt, tokens[:, None], mask[:, None]))[:, 0]
    return TextStatistics(
        float(np.mean(rewards)),
        float(np.mean(task.nll(batch.prompt, tokens, mask))),
        distinct_n(_words(task, tokens, mask), 2),
        _disagreement(reward, batch, tokens, mask),
        moved,
        forwards,
        rewards,
    )


def _words(task: Task, tokens: Any, mask: Any) -> list[list[int]]:
    """The tokens of each text, without its end."""
    rows = zip(np.asarray(tokens), np.asarray(mask), strict=True)
    return [[int(token) for token in row[seen] if int(token) != task.tokenizer.end] for row, seen in rows]


def _disagreement(reward: AbstractReward, batch: Batch, tokens: Any, mask: Any) -> float:
    if not isinstance(reward, RewardEnsemble):
        return 0.0
    whole = jnp.concatenate([batch.prompt.tokens, jnp.asarray(tokens)], axis=1)
    seen = jnp.concatenate([batch.prompt.mask, jnp.asarray(mask)], axis=1)
    return float(_mean_spread(reward, whole, seen))


@eqx.filter_jit
def _mean_spread(reward: RewardEnsemble, tokens: jax.Array, mask: jax.Array) -> jax.Array:
    each = jax.vmap(lambda t, m: reward.each(reward.embedding[t], m))(tokens, mask)
    return jnp.mean(jnp.std(each, axis=1))


def measure(
    task: Task, reward: AbstractReward, base: Reference, answer: Answer, judge: CommandJudge | None
) -> dict[str, Any]:
    """Return the row of one method's answers; scores of single prompts stand in it as JSON lists."""
    batch = task.test
    texts = task.decode(answer.tokens, answer.mask)
    tokens, mask = jnp.asarray(answer.tokens), jnp.asarray(answer.mask)
    proxy = np.asarray(score(reward, batch.prompt, tokens[:, None], mask[:, None]))[:, 0]
    row: dict[str, Any] = {
        "method": answer.method,
        "name": answer.name,
        "steps": answer.steps,
        "count": answer.count,
        "step_size": answer.step_size,
        "chosen": answer.chosen,
        "win": None,
        "win_low": None,
        "win_high": None,
        "win_people": None,
        "wins_people": "[]",
        "win_judged": None,
        "gold": None,
        "rating": None,
        "fluency": None,
        "vader": None,
        "judge_nll": None,
    }
    wins: Any = []
    if task.gold is not None and task.judge is not None and base.gold is not None:
        log_p = task.judge.log_probs(batch.texts, texts)
        gold = task.gold(texts, log_p)
        rating, fluency = task.gold.parts(texts, log_p)
        estimate = win_rate(gold, base.gold)
        wins = (0.5 + 0.5 * np.sign(gold[:, None] - base.gold)).mean(axis=1)
        row |= {"win": estimate.value, "win_low": estimate.low, "win_high": estimate.high}
        if base.people is not None:
            beside = 0.5 + 0.5 * np.sign(gold - base.people)
            row |= {"win_people": float(beside.mean()), "wins_people": json.dumps(beside.tolist())}
        row |= {"gold": float(gold.mean()), "rating": float(rating.mean()), "fluency": float(fluency.mean())}
        row |= {"vader": float(np.mean(vader_scores(texts))), "judge_nll": float(-log_p.mean())}
    if judge is not None:
        row["win_judged"] = judged_win_rate(judge, batch.texts, texts, base.texts).value
    mean, deviation = base.proxy
    changed = "" if answer.start is None else fraction_changed(answer.tokens, answer.start, answer.mask)
    row |= {
        "proxy": float((proxy.mean() - mean) / deviation),
        "nll": float(np.mean(task.nll(batch.prompt, tokens, mask))),
        "distinct_2": distinct_n(_words(task, answer.tokens, answer.mask), 2),
        "changed": changed,
        "forwards": answer.forwards,
        "seconds": answer.seconds,
        "train_seconds": answer.train_seconds,
        "wins": json.dumps([round(float(w), 4) for w in wins]),
        "texts": json.dumps(texts),
    }
    return row


#: Headings of a run's table; `describe_row` fills them.
COLUMNS = (
    *("method", "gold wins, %", "against people", "judged", "gold", "rating", "proxy, sd", "NLL under μ", "judge NLL"),
    *("distinct-2", "changed", "forwards", "s to begin", "s"),
)


def describe_row(row: dict[str, Any]) -> tuple[str, ...]:
    """Lay out one row of the table; what was not measured is a dash."""

    def number(name: str, form: str) -> str:
        value = row.get(name)
        return "-" if value is None or value == "" else format(value, form)

    wins = "-"
    share = lambda name: "-" if row[name] is None else f"{100 * row[name]:.0f}"
    if row["win"] is not None:
        wins = f"{100 * row['win']:.1f} [{100 * row['win_low']:.0f}, {100 * row['win_high']:.0f}]"
    name = row["name"] + (" (chosen)" if row["chosen"] else "")
    forms = {name: ".2f" for name in ("gold", "rating", "proxy", "nll", "judge_nll", "distinct_2", "changed")}
    forms |= {"forwards": ".0f", "train_seconds": ".0f", "seconds": ".1f"}
    return (name, wins, share("win_people"), share("win_judged"), *(number(key, form) for key, form in forms.items()))


def verdict(names: list[tuple[float, int]], candidates: list[TextStatistics], chosen: ChosenSteps) -> str:
    """Describe which budget was chosen and what spoke against the next higher rewards."""
    if chosen.index is None:
        return "no budget beats best-of-N within the limits: L = 0"
    step_size, steps = names[chosen.index]
    higher = [
        f"ε = {names[i][0]:g}, L = {names[i][1]} ({chosen.vetoes[i][0]})"
        for i in np.argsort([-c.proxy for c in candidates])
        if candidates[i].proxy > candidates[chosen.index].proxy and chosen.vetoes[i]
    ]
    against = f"; vetoed with a higher reward: {'; '.join(higher[:2])}" if higher else ""
    return f"chosen on validation prompts, without gold: ε = {step_size:g}, L = {steps}{against}"


def plot_curve(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw gold against proxy: over L for VGF, over N for best-of-N, and the trained policies as points."""
    import matplotlib.pyplot as plt

    rows = [row for row in rows if row["gold"] is not None]
    if not rows:
        return
    figure, axis = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    flow = [row for row in rows if row["method"] == "vgf"]
    for size in sorted({row["step_size"] for row in flow if row["steps"]}):
        line = [row for row in flow if row["step_size"] == size or not row["steps"]]
        axis.plot([r["proxy"] for r in line], [r["gold"] for r in line], "o-", label=f"VGF, ε = {size:g}")
        for row in line:
            axis.annotate(f"{row['steps']}", (row["proxy"], row["gold"]), textcoords="offset points", xytext=(3, 4))
    best = sorted((row for row in rows if row["method"] in ("sft", "bon", "matched")), key=lambda row: row["count"])
    if best:
        axis.plot([r["proxy"] for r in best], [r["gold"] for r in best], "s--", color="gray", label="best-of-N")
        for row in best:
            axis.annotate(f"N={row['count']}", (row["proxy"], row["gold"]), textcoords="offset points", xytext=(3, -11))
    for row in rows:
        if row["method"] in ("dpo", "ppo"):
            axis.plot(row["proxy"], row["gold"], "*", markersize=12, label=row["name"])
    axis.set(xlabel="proxy reward, standard deviations of μ's samples", ylabel="gold score")
    axis.set_title("Gold against proxy; numbers at the dots are steps L")
    axis.legend()
    figure.savefig(path, dpi=130)
    plt.close(figure)
