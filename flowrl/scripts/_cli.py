"""The console command: its subcommands by name. A program is imported only when it is chosen."""

import dataclasses
import difflib
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from flowrl._distribution import require


@dataclasses.dataclass(frozen=True)
class Command:
    """A subcommand: the package `flowrl.scripts.NAME` with its `Config` (or a `parse`) and its `main(config)`."""

    about: str
    extras: str = "rl,examples"
    needs: tuple[str, ...] = ("tyro", "rich", "matplotlib", "gymnasium")
    verb: str = "go on"


COMMANDS = {
    "offline": Command("train on a data set, and evaluate test budgets beside their controls"),
    "online": Command("go on with an offline run by acting"),
    "experiments": Command("run a matrix of offline runs; tables and plots from its rows"),
    "align": Command(
        "align a language model at test time, beside best-of-N, DPO and PPO",
        "rlhf,examples",
        ("tyro", "rich", "tokenizers", "safetensors"),
    ),
    "posterior": Command(
        "sample the posterior of a numpyro model, beside NUTS",
        "bayes,examples",
        ("tyro", "rich", "matplotlib", "numpyro"),
        "start again",
    ),
    "behaviour": Command("train a behaviour policy by soft actor-critic, for local data sets", verb="start again"),
}


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a subcommand to its end.

    Args:
        arguments: words of the command line; None reads those of this process.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    if not words or words[0] in ("-h", "--help"):
        print(_overview())
        sys.exit(0)
    name, *options = words
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=3) or COMMANDS
        sys.exit(f"flowrl: no command {name!r}; did you mean {', '.join(near)}? `flowrl --help` lists all.")
    command = COMMANDS[name]
    search_here()
    try:
        require(*command.needs, extra=command.extras)
    except ImportError as error:
        sys.exit(f"flowrl {name}: {error}")
    import tyro

    from flowrl.scripts._console import end_well

    program = importlib.import_module(f"flowrl.scripts.{name}")
    try:
        if hasattr(program, "parse"):
            config = program.parse(options)
        else:
            config = tyro.cli(program.Config, args=options, prog=f"flowrl {name}")
    except ValueError as error:
        sys.exit(f"ValueError: {error}")
    end_well(lambda: program.main(config), [*_called(), name, *options], config.out, verb=command.verb)


def search_here() -> None:
    """Let modules of the current directory be named, behind all that are installed, which they cannot hide."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())


def _called() -> list[str]:
    """Return the words that start this command again."""
    return ["python", "-m", "flowrl.scripts"] if Path(sys.argv[0]).name == "__main__.py" else ["flowrl"]


def _overview() -> str:
    lines = [f"  {name:<12} {command.about}" for name, command in COMMANDS.items()]
    return "\n".join(
        ["usage: flowrl COMMAND [options]", "", *lines, "", "`flowrl COMMAND --help` lists the options of a command."]
    )
