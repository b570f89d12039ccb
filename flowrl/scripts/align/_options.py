"""The options of `flowrl align`, and which of them are refused."""

import dataclasses
import json
import zlib
from pathlib import Path
from typing import Any, Literal

import jax.random as jr
from tyro.conf import OmitArgPrefixes

from flowrl.rlhf import Limits

#: Import names of the extra "rlhf" that a run uses sooner or later.
NEEDED = ("safetensors", "tokenizers", "sklearn", "vaderSentiment", "gguf")
METHODS = ("sft", "bon", "dpo", "ppo", "vgf")
#: Methods that train a policy: they need preferences or rollouts of a small reference.
TRAINED = ("dpo", "ppo")


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Model and data: the reference, its prompts and their lengths."""

    data: Literal["human", "generated"] = "human"
    """human: snippets that about twenty people rated (2.5 MB from PyPI); generated: made up on the spot."""
    rows: int | None = None
    """Texts to use; None for all."""
    mu: Literal["small", "smollm2"] = "small"
    """The reference: a small model trained here, or SmolLM2-135M from PyPI (93 MB; slow on a CPU)."""
    model: str | None = None
    """A real language model: a directory of safetensors, or a hub id. Needs --reward-model and --prompt-file."""
    reward_model: str | None = None
    """A sequence-classification model with the same tokens, as a directory or a hub id."""
    prompt_file: Path | None = None
    """JSONL with one "prompt" per line, for --model."""
    prompts: int = 100
    """Held-out prompts on which everything is reported."""
    validation_prompts: int = 100
    """Other held-out prompts, on which the budget is chosen."""
    prompt_length: int = 5
    """Tokens of a prompt."""
    length: int = 14
    """Tokens of a response."""


@dataclasses.dataclass(frozen=True)
class Learning:
    """Learning: reference, judge, reward models and trained policies."""

    width: int = 64
    """Width of the small models."""
    layers: int = 2
    """Layers of reference and judge."""
    vocabulary: int = 3000
    """Words of the small reference's tokenizer."""
    sft_steps: int = 700
    """Updates of reference and judge at most; they stop when held-out texts get less likely."""
    pairs: int = 6000
    """Preferences, drawn from the reference and labelled by the gold score with noise."""
    members: int = 2
    """Reward models, which differ in their seeds."""
    aggregate: Literal["mean", "min", "lower"] = "mean"
    """How they become one reward."""
    dropout: float = 0.2
    """Share of words that are hidden when reward models are trained."""
    reward_steps: int = 600
    """Updates of the reward models at most."""
    dpo_steps: int = 200
    """Updates of DPO at most."""
    dpo_beta: float = 0.1
    """DPO's β."""
    ppo_iterations: int = 60
    """Rollouts of PPO."""
    ppo_beta: float = 0.05
    """PPO's price per nat of divergence from the reference, in standard deviations of the reward."""


@dataclasses.dataclass(frozen=True)
class TestBudget:
    """Test-time budget: particles, their space and flow, and how the number of steps is chosen."""

    space: Literal["reference", "logit", "logit-reference", "token", "token-prior"] = "reference"
    """Where particles live; the reference takes part in the decoding but for "logit" and "token"."""
    moves: Literal["rising", "all"] = "rising"
    """rising: a particle keeps a move only if its reward rose, and else halves its step; all: whatever became of it."""
    particles: int = 8
    """Particles N per prompt."""
    steps: tuple[int, ...] = (1, 2, 4)
    """All L that are reported; L = 0 is best-of-N over the particles."""
    step_sizes: tuple[float, ...] = (2.0, 3.0, 4.0, 5.0, 6.0, 8.0)
    """Step sizes ε to choose from, for rewards in standard deviations over the reference's samples."""
    flow: Literal["ascent", "svgd"] = "svgd"
    """ascent: every particle by itself; svgd: those of one prompt share gradients, and repel at α > 0."""
    temperature: float = 0.0
    """α of svgd, in standard deviations of the reward; at 0.3 the repulsion was too weak to change any text."""
    max_displacement: float | None = None
    """Cap on every particle's distance from its sample, in the space's coordinates."""
    nll_band: float = Limits.nll_band
    """How much less likely than the reference's own samples texts may be, in standard deviations, when L is chosen."""
    variety: float = Limits.variety
    """Least distinct-2 as a share of best-of-N's, when L is chosen."""


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Evaluation: what is compared, and by what."""

    methods: tuple[Literal["sft", "bon", "dpo", "ppo", "vgf"], ...] = ("sft", "bon", "dpo", "vgf")
    """What is compared."""
    best_of: tuple[int, ...] = (8, 32, 128)
    """All N of best-of-N."""
    reference_samples: int = 16
    """Samples of the reference per prompt that answers are compared with."""
    judge: tuple[str, ...] = ()
    """A program that compares two answers, such as a script that asks a language model; see `CommandJudge`."""
    samples: int = 4
    """Texts that are printed for each method."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Alignment at test time, on film reviews that people rated."""

    out: Path = Path("runs/rlhf")
    """Directory of the run."""
    resume: bool = False
    """Go on with the run in --out; what determines it must be the same."""
    seed: int = 0
    """Seed of preferences, reward models, trained policies and samples; prompts, reference and gold have none."""
    data_dir: Path | None = None
    """Where data and the trained reference and judge are kept; default: the user's cache directory."""
    inputs: OmitArgPrefixes[Inputs] = dataclasses.field(default_factory=Inputs)
    learning: OmitArgPrefixes[Learning] = dataclasses.field(default_factory=Learning)
    budget: OmitArgPrefixes[TestBudget] = dataclasses.field(default_factory=TestBudget)
    evaluation: OmitArgPrefixes[Evaluation] = dataclasses.field(default_factory=Evaluation)

    def identity(self) -> dict[str, Any]:
        """Return what determines the results, by the names of the options, as JSON holds it."""
        groups = (self.inputs, self.learning, self.budget, self.evaluation)
        options = {"seed": self.seed} | {k: v for group in groups for k, v in dataclasses.asdict(group).items()}
        del options["samples"]
        return json.loads(json.dumps(options, default=str))

    def learned_from(self) -> dict[str, Any]:
        """Return what determines the models that are learned before the first answer, as JSON holds it."""
        options = {"seed": self.seed} | dataclasses.asdict(self.inputs) | dataclasses.asdict(self.learning)
        return json.loads(json.dumps(options, default=str))


def key_of(config: Config, purpose: str) -> Any:
    """Return the key of one purpose; no two purposes and no two seeds share one."""
    return jr.fold_in(jr.key(config.seed), zlib.crc32(purpose.encode()))


def check(config: Config) -> None:
    """Refuse what makes no sense, before anything is computed."""
    inputs, learning, budget, evaluation = config.inputs, config.learning, config.budget, config.evaluation
    for group, names in (
        (inputs, ("prompts", "validation_prompts", "prompt_length", "length")),
        (learning, ("pairs", "members", "width", "layers", "sft_steps", "reward_steps", "dpo_steps", "ppo_iterations")),
        (budget, ("particles",)),
        (evaluation, ("reference_samples",)),
    ):
        for name in names:
            if getattr(group, name) < 1:
                raise SystemExit(f"--{name.replace('_', '-')} must be at least 1, got {getattr(group, name)}.")
    for option, value, low, high in (
        ("nll-band", budget.nll_band, 0, float("inf")),
        ("variety", budget.variety, 0, 1),
        ("dropout", learning.dropout, 0, 0.99),
        ("temperature", budget.temperature, 0, float("inf")),
        ("ppo-beta", learning.ppo_beta, 0, float("inf")),
        ("dpo-beta", learning.dpo_beta, 1e-12, float("inf")),
        ("max-displacement", budget.max_displacement, 0, float("inf")),
        ("rows", inputs.rows, 20, float("inf")),
        ("vocabulary", learning.vocabulary, 20, float("inf")),
        ("seed", config.seed, 0, float("inf")),
        ("samples", evaluation.samples, 0, float("inf")),
    ):
        if value is not None and not low <= value <= high:
            raise SystemExit(f"--{option} must be in [{low:g}, {high:g}], got {value}.")
    if not evaluation.methods:
        raise SystemExit(f"--methods: name some of {', '.join(METHODS)}.")
    if not budget.steps or min(budget.steps) < 1 or list(budget.steps) != sorted(set(budget.steps)):
        raise SystemExit(f"--steps must be increasing numbers >= 1 (L = 0 is always there), got {budget.steps}.")
    sizes = budget.step_sizes
    if not sizes or min(sizes) <= 0 or list(sizes) != sorted(set(sizes)):
        raise SystemExit(f"--step-sizes must be increasing numbers > 0, got {sizes}.")
    if not evaluation.best_of or min(evaluation.best_of) < 1:
        raise SystemExit(f"--best-of must be >= 1, got {evaluation.best_of}.")
    if budget.flow == "ascent" and budget.temperature:
        raise SystemExit("--temperature is the repulsion of --flow svgd; ascent has none.")
    if learning.width % 16:
        raise SystemExit(f"--width must be a multiple of 16, the size of an attention head, got {learning.width}.")
    real = (inputs.model, inputs.reward_model, inputs.prompt_file)
    if any(real) and not all(real):
        raise SystemExit("a real model needs all of --model, --reward-model and --prompt-file.")
    if inputs.model and inputs.mu != "small":
        raise SystemExit("--model is the reference, and so is --mu: give one of them.")
    if inputs.model and set(evaluation.methods) & set(TRAINED):
        raise SystemExit("with --model nothing is trained: --methods sft bon vgf.")
    if inputs.mu == "smollm2" and set(evaluation.methods) & set(TRAINED):
        raise SystemExit("training SmolLM2 is beyond a CPU: with --mu smollm2 use --methods sft bon vgf.")
