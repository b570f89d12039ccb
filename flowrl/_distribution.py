"""The version, optional packages, and a guard against another distribution that writes to the same folder.

PyPI holds an unrelated project called `flowrl`, whose import name is `flowrl` too. Installed side by side, the two mix
their files in one folder, and which file wins depends on the order.
"""

import importlib
import importlib.metadata
from pathlib import Path

NAME = "flowrl-transport"


def version() -> str:
    """Return the version of the installed distribution, or "0+unknown" when run from a plain checkout."""
    try:
        return importlib.metadata.version(NAME)
    except importlib.metadata.PackageNotFoundError:
        return "0+unknown"


def install(extra: str) -> str:
    """Return the command that installs an extra, for messages about a missing package."""
    return f'pip install "{NAME}[{extra}]" (in a checkout: pip install -e ".[{extra}]")'


def require(*modules: str, extra: str) -> None:
    """Raise an ImportError that names the module and the pip command, unless all can be imported.

    Args:
        modules: names such as "ogbench".
        extra: the extra of the distribution that brings them, such as "rl"; several as "rl,examples".
    """
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            package = module.partition(".")[0]  # what pip installs, and what the name of the error is
            raise ImportError(
                f"{package} is needed here and could not be imported ({error}): {install(extra)}", name=package
            ) from error


def refuse_foreign(package: Path) -> None:
    """Raise ImportError if the unrelated `flowrl` distribution is installed in the folder of this package."""
    try:
        foreign = importlib.metadata.distribution("flowrl")
    except importlib.metadata.PackageNotFoundError:
        return
    if Path(str(foreign.locate_file("flowrl"))).resolve() == package.resolve():
        raise ImportError(
            f"another distribution, flowrl {foreign.version}, is installed in the same folder ({package}) and their "
            f"files are mixed. Run: pip uninstall -y flowrl {NAME} && pip install {NAME} "
            "(in a checkout: pip install -e .)",
            name="flowrl",
        )
