"""Write the tables and the figure of `samplers.py` from its rows.

    python tests/benchmarks/samplers_report.py docs/results/samplers/rows.csv

Beside the rows come tables.md and samplers.png.
"""

import csv
import pathlib
import statistics
import sys

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

NAMES = {
    "sample": "flowrl.sample", "nuts": "NUTS", "mclmc": "MCLMC", "meads": "MEADS", "pathfinder": "Pathfinder",
    "svgd": "SVGD, best of four steps",
}  # fmt: skip
RIGHT = 0.01


def number(text: str) -> str:
    """Return a number as a reader wants it."""
    value = float(text)
    return "–" if value == float("inf") else f"{value:.2g}" if value >= 1e-4 else f"{value:.0e}"


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a table in Markdown."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


def main() -> None:
    """Write the report."""
    path = pathlib.Path(sys.argv[1])
    rows = list(csv.DictReader(path.open()))
    cases = list(dict.fromkeys(row["case"] for row in rows))
    methods = [method for method in NAMES if any(row["method"] == method for row in rows)]
    of = {(c, m): [r for r in rows if (r["case"], r["method"]) == (c, m)] for c in cases for m in methods}
    dimension = {row["case"]: row["dimension"] for row in rows}

    def errors(case: str, method: str) -> str:
        found = sorted(float(row["b2"]) for row in of[case, method])
        if not found:
            return ""
        low, middle, high = (number(str(x)) for x in (found[0], statistics.median(found), found[-1]))
        text = f"{middle} [{low}, {high}]"
        return f"**{text}**" if found[-1] < RIGHT else text

    def cost(case: str, method: str) -> str:
        found = [float(row["gradients_to"]) for row in of[case, method]]
        there = [x for x in found if x < float("inf")]
        return "" if not found else f"{statistics.median(found):,.0f}" if len(there) == len(found) else (
            f"{len(there)} of {len(found)}"
        )  # fmt: skip

    def depth(case: str, method: str) -> str:
        found = [int(row["depth"]) for row in of[case, method]]
        return f"{statistics.median(found):,.0f}" if found else ""

    head = ["posterior", "d", *(NAMES[m] for m in methods)]
    counts: dict[str, list[int]] = {}
    for row in rows:
        if row["verdict"]:
            b2 = float(row["b2"])
            place = 0 if b2 < RIGHT / 2 else 1 if b2 < RIGHT else 2
            counts.setdefault(row["verdict"], [0, 0, 0])[place] += 1
    parts = [
        "Error b² after at most 100,000 gradients, median [least, largest] of seeds; bold where all are below 0.01:",
        table(head, [[c, dimension[c], *(errors(c, m) for m in methods)] for c in cases]),
        "Gradients from which on b² stays below 0.01 (median; or how many seeds get there):",
        table(head, [[c, dimension[c], *(cost(c, m) for m in methods)] for c in cases]),
        "Gradients one after another, to the end of the run:",
        table(head, [[c, dimension[c], *(depth(c, m) for m in methods)] for c in cases]),
        "What the verdict of `flowrl.sample` said, against what was true, in runs:",
        table(
            ["verdict", "b² < 0.005", "0.005 to 0.01", "b² > 0.01"],
            [[word, *map(str, counts[word])] for word in ("arrived", "cannot tell", "not arrived") if word in counts],
        ),
    ]
    (path.parent / "tables.md").write_text("\n\n".join(parts) + "\n")
    figure, ax = plt.subplots(figsize=(8, 0.42 * len(cases) + 1.2), layout="constrained")
    for place, method in enumerate(methods):
        points = [
            (float(row["b2"]), i + 0.12 * (place - len(methods) / 2))
            for i, c in enumerate(cases)
            for row in of[c, method]
        ]
        points = [(min(max(x, 1e-5), 10), y) for x, y in points]
        ax.scatter(*zip(*points, strict=True), s=14, marker="oDs^vx"[place], label=NAMES[method], alpha=0.8)
    ax.axvline(RIGHT, color="grey", linewidth=1)
    ax.set(
        xscale="log",
        xlabel="error b² after at most 100,000 gradients (10 and more at the edge)",
        ylim=(len(cases) - 0.4, -0.7),
    )
    ax.set_yticks(range(len(cases)), cases)
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    figure.savefig(path.parent / "samplers.png", dpi=130)


if __name__ == "__main__":
    main()
