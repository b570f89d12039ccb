"""What `rlhf.py` can be told, and what is refused."""

import dataclasses
import zlib
from pathlib import Path
from typing import Any, Literal

import jax.random as jr

#: Import names of the extra "rlhf" that a run uses sooner or later.
NEEDED = ("safetensors", "tokenizers", "sklearn", "vaderSentiment", "gguf")
METHODS = ("sft", "bon", "dpo", "ppo", "vgf")
#: Options that nothing learned before the answers depends on; all others determine what a run keeps.
NOT_LEARNED = frozenset(
    {"methods", "space", "out", "resume", "data_dir", "reference_samples", "particles"}
    | {
        "steps",
        "step_sizes",
        "judge",
        "flow",
        "temperature",
        "max_displacement",
        "nll_band",
        "variety",
        "best_of",
        "samples",
    }
)
#: Methods that train a policy: they need preferences or rollouts of a small reference.
TRAINED = ("dpo", "ppo")


@dataclasses.dataclass(frozen=True)
class Config:
    """Alignment at test time, on film reviews that people rated."""

    methods: tuple[Literal["sft", "bon", "dpo", "ppo", "vgf"], ...] = ("sft", "bon", "dpo", "vgf")
    """What is compared."""
    space: Literal["reference", "logit", "logit-reference", "token", "token-prior"] = "logit-reference"
    """Where VGF's particles live; "logit-reference" and "token-prior" let the reference take part in the decoding."""
    out: Path = Path("runs/rlhf")
    """Directory of the run."""
    resume: bool = False
    """Go on with the run in --out; what determines it must be the same."""
    seed: int = 0
    """Seed of preferences, reward models, trained policies and samples; prompts, reference and gold have none."""

    data: Literal["human", "generated"] = "human"
    """human: snippets that about twenty people rated (2.5 MB from PyPI); generated: made up on the spot."""
    data_dir: Path | None = None
    """Where data and the trained reference and judge are kept; default: the user's cache directory."""
    rows: int | None = None
    """Texts to use, of those there are; None for all."""

    mu: Literal["small", "smollm2"] = "small"
    """The reference: a small model trained here, or SmolLM2-135M from PyPI (93 MB; slow on a CPU)."""
    model: str | None = None
    """A real language model: a directory of safetensors, or a hub id. Needs --reward-model and --prompt-file."""
    reward_model: str | None = None
    """A sequence-classification model with the same tokens, as a directory or a hub id."""
    prompt_file: Path | None = None
    """JSONL with a "prompt" a line, for --model."""

    prompts: int = 100
    """Held-out prompts on which everything is reported."""
    validation_prompts: int = 100
    """Other held-out prompts, on which the budget is chosen."""
    prompt_length: int = 5
    """Tokens of a prompt."""
    length: int = 14
    """Tokens of a response."""
    reference_samples: int = 16
    """Samples of the reference a prompt that answers are compared with."""

    particles: int = 8
    """Particles N a prompt."""
    steps: tuple[int, ...] = (1, 2, 4)
    """All L that are reported; L = 0 is best-of-N over the particles."""
    step_sizes: tuple[float, ...] = (0.5, 0.7, 1.0, 1.5, 2.0, 3.0)
    """Step sizes ε to choose from, over the reward's standard deviation over the reference's samples."""
    flow: Literal["ascent", "svgd"] = "ascent"
    """ascent: every particle by itself; svgd: those of one prompt share gradients, and repel at α > 0."""
    temperature: float = 0.0
    """α of svgd, in standard deviations of the reward; at 0.3 the repulsion was too weak to change any text."""
    max_displacement: float | None = None
    """Cap on every particle's distance from its sample, in the space's coordinates."""
    nll_band: float = 0.25
    """How much less likely than the reference's own samples texts may be, in standard deviations, when L is chosen."""
    variety: float = 0.9
    """Least distinct-2 beside best-of-N's, when L is chosen."""
    best_of: tuple[int, ...] = (8, 32, 128)
    """All N of best-of-N."""

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
    """PPO's price of a nat of divergence from the reference, in standard deviations of the reward."""
    judge: tuple[str, ...] = ()
    """A program that compares two answers, such as a script that asks a language model; see `CommandJudge`."""
    samples: int = 4
    """Texts that are printed for each method."""


def key_of(config: Config, purpose: str) -> Any:
    """Give the key of one purpose; no two purposes and no two seeds share one.

    Args:
        config: of which the seed is read.
        purpose: what the randomness is for.
    """
    return jr.fold_in(jr.key(config.seed), zlib.crc32(purpose.encode()))


def check(config: Config) -> None:
    """Refuse what makes no sense, before anything is computed.

    Args:
        config: the options.
    """
    counts = ("prompts", "validation_prompts", "prompt_length", "length", "reference_samples", "particles", "pairs")
    for name in (*counts, "members", "width", "layers", "sft_steps", "reward_steps", "dpo_steps", "ppo_iterations"):
        if getattr(config, name) < 1:
            raise SystemExit(f"--{name.replace('_', '-')} must be at least 1, got {getattr(config, name)}.")
    for name, low, high in (
        ("nll_band", 0, float("inf")),
        ("variety", 0, 1),
        ("dropout", 0, 0.99),
        ("temperature", 0, float("inf")),
        ("ppo_beta", 0, float("inf")),
        ("dpo_beta", 1e-12, float("inf")),
        ("max_displacement", 0, float("inf")),
        ("rows", 20, float("inf")),
        ("vocabulary", 20, float("inf")),
        ("seed", 0, float("inf")),
        ("samples", 0, float("inf")),
    ):
        value = getattr(config, name)
        if value is not None and not low <= value <= high:
            raise SystemExit(f"--{name.replace('_', '-')} must be in [{low:g}, {high:g}], got {value}.")
    if not config.methods:
        raise SystemExit(f"--methods: name some of {', '.join(METHODS)}.")
    if not config.steps or min(config.steps) < 1 or list(config.steps) != sorted(set(config.steps)):
        raise SystemExit(f"--steps must be increasing numbers >= 1 (L = 0 is always there), got {config.steps}.")
    sizes = config.step_sizes
    if not sizes or min(sizes) <= 0 or list(sizes) != sorted(set(sizes)):
        raise SystemExit(f"--step-sizes must be increasing numbers > 0, got {sizes}.")
    if not config.best_of or min(config.best_of) < 1:
        raise SystemExit(f"--best-of must be >= 1, got {config.best_of}.")
    if config.flow == "ascent" and config.temperature:
        raise SystemExit("--temperature is the repulsion of --flow svgd; ascent has none.")
    if config.width % 16:
        raise SystemExit(f"--width must be a multiple of 16, the size of an attention head, got {config.width}.")
    real = (config.model, config.reward_model, config.prompt_file)
    if any(real) and not all(real):
        raise SystemExit("a real model needs all of --model, --reward-model and --prompt-file.")
    if config.model and config.mu != "small":
        raise SystemExit("--model is the reference, and so is --mu: give one of them.")
    if config.model and set(config.methods) & set(TRAINED):
        raise SystemExit("with --model nothing is trained: --methods sft bon vgf.")
    if config.mu == "smollm2" and set(config.methods) & set(TRAINED):
        raise SystemExit("training SmolLM2 is beyond a CPU: with --mu smollm2 use --methods sft bon vgf.")
