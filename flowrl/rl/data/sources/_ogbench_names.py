"""OGBench's single-task names, and how they split into an environment, a style of data, and a task."""

from flowrl.rl.data.generators import RECIPES

# Published data sets that cannot be made here: their collecting policies were trained, and those are not published
# (cube-octuple could be, but the published set is far beyond what one machine collects).
_FILE_ONLY = (
    *(
        f"antmaze-{size}-{style}-v0"
        for size in ("medium", "large", "giant", "teleport")
        for style in ("navigate", "stitch")
    ),
    *(f"antmaze-{size}-explore-v0" for size in ("medium", "large", "teleport")),
    *(f"humanoidmaze-{size}-{style}-v0" for size in ("medium", "large", "giant") for style in ("navigate", "stitch")),
    *(f"antsoccer-{size}-{style}-v0" for size in ("arena", "medium") for style in ("navigate", "stitch")),
    "cube-octuple-play-v0",
    "cube-octuple-noisy-v0",
)


def published_data() -> tuple[str, ...]:
    """Return every data set that OGBench has published for single tasks on states."""
    return (*RECIPES, *_FILE_ONLY)


def single_tasks() -> tuple[str, ...]:
    """Return every single-task name; "...-singletask-v0" is OGBench's default task, which is not always task 1."""
    tasks = ("", *(f"-task{number}" for number in range(1, 6)))
    return tuple(f"{name.removesuffix('-v0')}-singletask{task}-v0" for name in published_data() for task in tasks)


def split_name(name: str) -> tuple[str, str]:
    """Return the data set ("puzzle-3x3-play-v0") and the gymnasium id of a single-task name."""
    before, after = name.split("-singletask")
    env, _ = before.rsplit("-", 1)
    return f"{before}-v0", f"{env}-singletask{after}"
