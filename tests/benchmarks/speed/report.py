"""Plots and tables for the docs, from the newest row of every case."""

import json

import rounds
from rounds import read


def _table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(str(x) for x in row) + " |" for row in rows]) + "\n"


def _save(name, text):
    (rounds.OUT / f"{name}.md").write_text(text)
    print(f"wrote {name}.md")


def _when(rows):
    """Describe what machine and load the rows are from."""
    runs = json.loads((rounds.OUT / "runs.json").read_text())
    alike = {}
    for row in rows:
        alike.setdefault(json.dumps(runs[row["run"]]), []).append(row)
    words = []
    for text, found in alike.items():
        m, used = json.loads(text), sorted(row["run"] for row in found)
        loads = sorted(float(row["load"]) for row in found)
        versions = ", ".join(f"{name} {version}" for name, version in m["versions"].items())
        part = "Measured" if len(alike) == 1 else f"{len(found)} of {len(rows)} rows measured"
        time = f"at {used[0]}" if used[0] == used[-1] else f"between {used[0]} and {used[-1]}"
        precision = m["matmul_precision"]
        place = f"{m['cores']} cores of an {m['processor']}"
        if m["backend"] != "cpu":
            place = f"one {m['device']} beside {place}"
            precision = precision.partition(" (")[0]  # what follows is of CPUs
        words.append(
            f"{part} {time} on {place}, matmul precision {precision}; load {loads[0]:g} to {loads[-1]:g}, "
            f"largest resident memory {max(int(row['peak_mb']) for row in found)} MB; {versions}."
        )
    return "\n" + "\n".join(words) + "\n"


def _bound(row):
    bound = f" (≥ {row['lower90']})" if row["lower90"] else ""
    return f"{float(row['ratio']):.4g}×{bound}" if row["ratio"] else "–"


# The bars: (N, d), what is compared, the least ratio.
BARS = [
    ((1000, 10), "blackjax", "the peers' median", "the peers' median", 12),
    ((1000, 10), "msvgd", "the peers' median", "the peers' median", 8),
    ((1000, 10), "numpyro", "the peers' median", "the peers' median", 20),
    ((1000, 10), "blackjax", "fixed", "fixed", 30),
    ((1000, 10), "blackjax", "the peers' median", "default", 30),
    ((5000, 50), "blackjax", "the peers' median", "the peers' median", 10),
]


def _svgd(here):
    rows = read("svgd")
    cells = {(int(r["N"]), int(r["d"]), r["method"], r["rule"], r["peer"]): r for r in rows}
    sizes = sorted({key[:2] for key in cells})
    columns = [("flowrl", rule, "") for rule in ("the peers' median", "fixed", "default")]
    columns += [("blackjax", "the peers' median", "the peers' median"), ("blackjax", "fixed", "fixed")]
    columns += [(peer, "the peers' median", "the peers' median") for peer in ("msvgd", "numpyro")]
    body = []
    for size in sizes:
        found = [cells.get((*size, *column)) for column in columns]
        body.append([*size, *(f"{float(r['median_ms']):.3g}" if r else "–" for r in found)])
    head = [
        "N",
        "d",
        *(f"{m}, {'fixed' if r == 'fixed' else 'default rule' if r == 'default' else 'median'}" for m, r, _ in columns),
    ]
    _save("svgd", _table(head, body) + _when(rows))
    if not here:
        return
    body = []
    for size, method, theirs, own, bar in BARS:
        row = cells.get((*size, method, theirs, own))
        if row:
            kept = row["lower90"] and float(row["lower90"]) >= bar
            what = {
                "the peers' median": "its own rule, all pairs",
                "fixed": "fixed bandwidth",
                "default": "both as they come",
            }
            body.append(
                [f"N = {size[0]}, d = {size[1]}", method, what[own], f"{bar}×", _bound(row), "yes" if kept else "no"]
            )
    _save("svgd_bars", _table(["size", "beside", "bandwidth", "bar", "measured", "reached"], body))
    body = []
    # The best rates that any size saw: a machine that sags must not excuse a step.
    flops, exps = (max(float(row[name]) for row in rows) for name in ("gflops", "gexp"))
    for n, d in sizes:
        row = cells.get((n, d, "flowrl", "fixed", ""))
        if row:
            model = 1e-6 * ((2 * n * n * d + 2 * n * n * (d + 1)) / flops + n * n / exps)
            taken = [float(row[name]) for name in ("min_ms", "median_ms")]
            body.append([n, d, f"{model:.3g}", *(f"{x:.3g} ({x / model:.2f}×)" for x in taken)])
    head = ["N", "d", f"model at {flops:g} GFLOP/s and {exps:g} · 10⁹ exp/s, ms", "fastest step, ms", "median, ms"]
    _save("svgd_model", _table(head, body))
    _plot(cells, sizes)


def _plot(cells, sizes):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    dimensions = sorted({d for _, d in sizes})
    figure, axes = plt.subplots(1, len(dimensions), figsize=(3.3 * len(dimensions), 3.2), sharey=True, squeeze=False)
    lines = {"flowrl, default": ("flowrl", "default", ""), "flowrl, peers' rule": ("flowrl", "the peers' median", "")}
    lines |= {p: (p, "the peers' median", "the peers' median") for p in ("blackjax", "msvgd", "numpyro")}
    for axis, d in zip(axes[0], dimensions, strict=True):
        for name, key in lines.items():
            points = [
                (n, float(cells[(n, d, *key)]["median_ms"])) for n, e in sizes if e == d and (n, d, *key) in cells
            ]
            if points:
                axis.loglog(*zip(*points, strict=True), "o-" if "flowrl" in name else "s--", label=name, markersize=4)
        axis.set(xlabel="particles", title=f"d = {d}")
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("ms per step")
    axes[0][0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(rounds.OUT / "svgd.png", dpi=130)
    plt.close(figure)


def _accuracy():
    rows = read("accuracy")
    head = ["target", "method", "least error", "after steps", "seconds", "flowrl as good after", "seconds", "ratio"]
    body = [
        [r["target"], r["method"], r["least_error"], r["at_step"], r["seconds"], r["flowrl_steps"] or "never"]
        + [r["flowrl_seconds"] or "–", f"{r['ratio']}×" if r["ratio"] else "–"]
        for r in rows
    ]
    _save("accuracy", _table(head, body) + _when(rows))


def _update(name):
    rows = read(name)
    head = ["case", "L", "method", "ms an update", "compilation, s", "faster than the authors"]
    rows.sort(key=lambda r: (r["case"], int(r.get("L", 0))))
    body = [
        [r["case"], r.get("L", "–"), r["method"], f"{float(r['median_ms']):.4g}", r["compile_s"], _bound(r)]
        for r in rows
    ]
    _save(name, _table(head, body) + _when(rows))


def _pieces():
    rows = read("pieces")
    head = ["piece", "ms", "share", "10⁹ operations", "of XLA's count", "GFLOP/s"]
    body = [
        [r["piece"], f"{float(r['median_ms']):.4g}", r["share"], r["gflop"], r["xla_gflop"], r["gflops"]] for r in rows
    ]
    _save("pieces", _table(head, body) + _when(rows))


# (case, L, method), the least ratio.
UPDATES = [
    (("paper", "1", "flowrl"), 1.05),
    (("paper", "5", "flowrl"), 1.05),
    (("width 64", "1", "flowrl"), 1.8),
    (("width 32", "1", "flowrl"), 1.8),
    (("paper", "1", "flowrl, cached reference samples"), 1.7),
    (("paper", "5", "flowrl, amortized gradient"), 2.0),
]


def _bars():
    rows = {(r["case"], r["L"], r["method"]): r for r in read("vgf")}
    body = []
    for key, bar in UPDATES:
        row = rows.get(key)
        if row:
            # Too few rounds have no bound.
            reached = row["lower90"] != "" and float(row["lower90"]) >= bar
            body.append([f"update, {key[0]}, L = {key[1]}: {key[2]}", f"{bar}×", _bound(row), reached])
    for name, what, bar in (("evaluation", "evaluation", 4), ("train", "training and evaluation", 1.5)):
        for row in read(name):
            if row["method"] == "flowrl":
                size = f"{row['episodes']} episodes × 4 budgets, width {row['width']}, {row['lanes']} environments"
                body.append([f"{what}, {size}", f"{bar}×", f"{row['ratio']}×", float(row["ratio"]) >= bar])
    seconds = {(r["what"], r["method"]): r["seconds"] for r in read("waiting")}
    if ("compile", "flowrl, L = 5") in seconds:
        ratio = float(seconds["compile", "authors, L = 5"]) / float(seconds["compile", "flowrl, L = 5"])
        body.append(["compilation at L = 5", "2×", f"{ratio:.2f}×", ratio >= 2])
    if ("import", "flowrl") in seconds:
        imported = float(seconds["import", "flowrl"])
        body.append(["`import flowrl` on top of jax", "< 1.5 s", f"{imported:.2f} s", imported < 1.5])
    _save("bars", _table(["what", "bar", "measured", "reached"], [[*r[:3], "yes" if r[3] else "no"] for r in body]))


def _plain(name, columns):
    rows = read(name)
    if rows:
        body = [[r[key] if r[key] != "" else "–" for key in columns] for r in rows]
        _save(name, _table(list(columns.values()), body) + _when(rows))


def write(here):
    """Write everything that has been measured.

    Args:
        here: on the machine that the bars are for; otherwise there are tables only.
    """
    for name, make in (
        ("svgd", lambda: _svgd(here)),
        ("accuracy", _accuracy),
        ("vgf", lambda: _update("vgf")),
        ("fql", lambda: _update("fql")),
        ("pieces", _pieces),
    ):
        if (rounds.OUT / f"{name}.csv").exists():
            make()
    _plain(
        "large",
        {"N": "N", "d": "d", "precision": "precision of products", "median_ms": "ms per step", "model_ms": "model, ms"}
        | {"product_gflops": "product, GFLOP/s", "gexp": "exp, 10⁹/s", "device_mb": "most of the device's memory, MB"},
    )
    _plain(
        "precision",
        {"N": "N", "d": "d", "case": "products", "error": "error of a direction"}
        | {"variance": "variance at rest", "mean": "largest mean"},
    )
    if here:
        _bars()
    _plain(
        "evaluation",
        {"episodes": "episodes × 4 budgets", "width": "width", "method": "method", "lanes": "environments"}
        | {"mean_length": "steps an episode", "seconds": "seconds", "ratio": "faster"},
    )
    _plain(
        "train",
        {"updates": "updates", "episodes": "episodes × 4 budgets", "width": "width", "method": "method"}
        | {"lanes": "environments"}
        | {"training": "training, s", "all": "with the evaluation, s", "ratio": "faster"},
    )
    _plain("waiting", {"what": "what", "method": "of", "rounds": "processes", "seconds": "seconds", "note": "note"})
