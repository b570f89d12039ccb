"""The tables of the docs are those of code and results; `python tests/test_tables.py` writes them."""

import csv
import pathlib
import statistics

import diffrax
import optax
import pytest

import flowrl

DOCS = pathlib.Path(__file__).resolve().parents[1] / "docs"
RESULTS = DOCS / "results"

FLOWS = {
    "SVGD": flowrl.SVGD(),
    "SlicedSVGD": flowrl.SlicedSVGD(),
    "RandomBatch": flowrl.RandomBatch(flowrl.SVGD(), 100),
    "Ascent": flowrl.Ascent(),
    "Langevin": flowrl.Langevin(),
    "ALDI": flowrl.ALDI(),
    "Blob": flowrl.Blob(),
    "KSDDescent": flowrl.KSDDescent(),
    "MMDFlow": flowrl.MMDFlow(),
    "SinkhornFlow": flowrl.SinkhornFlow(),
    "Consensus": flowrl.Consensus(),
    "EKS": flowrl.EKS(),
    "EKI": flowrl.EKI(),
    "KFRFlow": flowrl.KFRFlow(),
    "BirthDeath": flowrl.BirthDeath(),
}
SOLVERS = {
    "Euler": flowrl.Euler(),
    "Optax": flowrl.Optax(optax.adam(1.0)),
    "JKO": flowrl.JKO(),
    "Diffrax(Tsit5)": flowrl.Diffrax(),
    "Diffrax(ShARK)": flowrl.Diffrax(diffrax.ShARK(), diffrax.ConstantStepSize()),
    "Diffrax(Euler)": flowrl.Diffrax(diffrax.Euler(), diffrax.ConstantStepSize()),
}
DOMAINS = {
    "unbounded": flowrl.Unbounded(),
    "by projection or reflection": flowrl.Box(0, 1),
    "by bijector or mirror map": flowrl.Box(0, 1, by="bijector"),
}


def _table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def _read(name):
    return list(csv.DictReader((RESULTS / name).read_text().splitlines()))


def _flows():
    head = ["flow", "asks the target for", "temperature", "random", "energy", *SOLVERS]
    rows = []
    for name, flow in FLOWS.items():
        traits = flow.traits
        random = [
            word
            for word, is_so in (("noise", traits.diffuses), ("jumps", traits.jumps), ("velocity", traits.random))
            if is_so
        ]
        marks = ["yes" if flowrl.supports(flow, solver, flowrl.Unbounded()) else "–" for solver in SOLVERS.values()]
        rows.append(
            [
                f"[`{name}`][flowrl.{name}]",
                ", ".join(sorted(traits.needs)),
                {"none": "–", "any": "α ≥ 0", "positive": "α > 0"}[traits.temperature],
                " and ".join(random) or "–",
                "–" if traits.energy_needs is None else "yes",
                *marks,
            ]
        )
    return _table(head, rows)


METHODS = {
    "Euler": flowrl.Euler(),
    "Optax": flowrl.Optax(optax.adam(1.0)),
    "JKO": flowrl.JKO(),
    "Diffrax": flowrl.Diffrax(),
    "Hamiltonian": flowrl.Hamiltonian(),
    "Microcanonical": flowrl.Microcanonical(),
    "Metropolis": flowrl.Metropolis(),
    "Monotone": flowrl.Monotone(),
    "Nesterov": flowrl.Nesterov(),
    "Coin": flowrl.Coin(),
    "Adaptive": flowrl.Adaptive(),
    "Tempered": flowrl.Tempered(),
}


def _solvers():
    head = [
        "solver",
        "asks the target for",
        "flows",
        "noise",
        "jumps",
        "draws",
        "minibatches",
        "step size",
        "caps",
        "tolerance",
    ]
    rows = []
    for name, solver in METHODS.items():
        needs = solver.needs
        marks = {True: "yes", False: "–"}
        size = "chooses" if needs.chooses else "given or adapted" if needs.adapts else "given"
        kinds = (
            "all" if needs.flows == (flowrl.AbstractFlow,) else ", ".join(f"`{kind.__name__}`" for kind in needs.flows)
        )
        if needs.energy:
            kinds = "with an energy"
        rows.append(
            [
                f"[`{name}`][flowrl.{name}]",
                ", ".join(sorted(needs.target)) or "what the flow asks",
                kinds,
                {"none": "–", "additive": "additive", "any": "yes"}[needs.noise],
                marks[needs.jumps],
                marks[needs.random],
                marks[not needs.exact],
                size,
                marks[needs.caps],
                marks[needs.rests],
            ]
        )
    return _table(head, rows)


def _domains():
    head = ["solver", *DOMAINS]
    ascent = flowrl.Ascent()
    rows = [
        [name, *("yes" if flowrl.supports(ascent, solver, domain) else "–" for domain in DOMAINS.values())]
        for name, solver in SOLVERS.items()
    ]
    return _table(head, rows)


def _variance():
    rows = _read("stationary_variance.csv")
    methods = list(dict.fromkeys(row["method"] for row in rows))
    found = {(row["method"], int(row["d"]), int(row["n"])): float(row["variance"]) for row in rows}
    cases = sorted({(d, n) for _, d, n in found})
    head = ["d", "n", *methods]
    return _table(head, [[str(d), str(n), *(f"{found[m, d, n]:.2f}" for m in methods)] for d, n in cases])


def _parameter_free():
    found = _groups(_read("parameter_free.csv"), "method", "target")
    targets = list(dict.fromkeys(target for _, target in found))

    def cell(runs):
        if not runs[0]["mean_error"]:
            return "refused"
        error, least, largest = (
            worst(float(row[name]) for row in runs)
            for name, worst in (("mean_error", max), ("least_variance", min), ("largest_variance", max))
        )
        return "diverged" if error > 1e3 else f"{error:.2f}; {least:.2f} to {largest:.2f}"

    methods = list(dict.fromkeys(method for method, _ in found))
    return _table(["method", *targets], [[method, *(cell(found[method, t]) for t in targets)] for method in methods])


def _scalable():
    head = ["d", "n", "flow", "error of the mean", "variance", "ms per step"]
    rows = []
    for row in _read("scalable.csv"):
        name, _, inner = row["flow"].partition("(")
        flow = f"`{name}({inner.replace('SVGD', 'SVGD()')}`" if inner else f"`{name}()`"
        numbers = (f"{float(row['mean_error']):.3f}", f"{float(row['variance']):.2f}", f"{float(row['ms']):.2g}")
        rows.append([row["d"], f"{int(row['n']):,}", flow, *numbers])
    return _table(head, rows)


def _groups(rows, *names):
    """Rows that share what is named, in the order of the file."""
    groups = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in names), []).append(row)
    return groups


def _median(rows, name):
    return statistics.median(float(row[name]) for row in rows)


def _cost():
    rows = [row for row in _read("posteriors.csv") if not row["method"].startswith("NUTS thinned")]
    found, cases = _groups(rows, "method", "posterior", "start"), list(_groups(rows, "posterior", "start"))

    def cell(runs):
        reached = [row for row in runs if row["gradients_to_accuracy"]]
        if not reached:
            return f"never; {_median(runs, 'best_error'):.2f}"
        count = "" if len(reached) == len(runs) else f"{len(reached)} of {len(runs)}: "
        cost = f"{_median(reached, 'gradients_to_accuracy'):,.0f}, {_median(reached, 'seconds_to_accuracy'):.3f} s"
        return count + cost

    head = ["method", *(f"{model}, from {start}" for model, start in cases)]
    methods = list(dict.fromkeys(row["method"] for row in rows))
    return _table(head, [[method, *(cell(found[method, *case]) for case in cases)] for method in methods])


def _quality():
    rows = []
    for (model, start, method), runs in _groups(_read("posteriors.csv"), "posterior", "start", "method").items():
        predicts = runs[0]["test_log_likelihood"] != ""
        test = f"{_median(runs, 'test_log_likelihood'):.3f}".replace("-", "−") if predicts else "–"
        errors = (f"{_median(runs, name):.3f}" for name in ("mean_error", "log_sd_error", "ksd"))
        rows.append([f"{model}, from {start}", method, f"{_median(runs, 'kept'):.0f}", *errors, test])
    return _table(["posterior", "method", "particles", "mean / sd", "log sd", "KSD", "test log-likelihood"], rows)


def _filters():
    rows = []
    for row in _read("lorenz63.csv"):
        error = f"{float(row['rmse']):.2f} ± {float(row['half_width_95']):.2f}"
        excess = f"{float(row['excess']):+.2f} ± {float(row['excess_half_width_95']):.2f}" if rows else "–"
        rows.append([row["filter"], error, f"{float(row['worst_seed']):.2f}", excess])
    return _table(["filter", "error", "worst seed", "more than the first"], rows)


FLOWS_PAGE, POSTERIOR_PAGE = DOCS / "concepts" / "flows.md", DOCS / "results" / "posteriors.md"
TABLES = {
    "flows": (FLOWS_PAGE, _flows),
    "solvers": (FLOWS_PAGE, _solvers),
    "domains": (FLOWS_PAGE, _domains),
    "variance": (FLOWS_PAGE, _variance),
    "scalable": (FLOWS_PAGE, _scalable),
    "parameter free": (FLOWS_PAGE, _parameter_free),
    "cost": (POSTERIOR_PAGE, _cost),
    "quality": (POSTERIOR_PAGE, _quality),
    "filters": (DOCS / "tutorials" / "filtering.md", _filters),
}


def _marked(name):
    return f"<!-- table: {name} -->\n\n", f"\n\n<!-- end: {name} -->"


@pytest.mark.parametrize("name", TABLES)
def test_the_tables_of_the_docs_are_those_of_the_code(name):
    page, table = TABLES[name]
    begin, end = _marked(name)
    written = page.read_text().split(begin)[1].split(end)[0]
    assert written == table(), f"python tests/{pathlib.Path(__file__).name} writes the table of {name} again"


if __name__ == "__main__":
    for name, (page, table) in TABLES.items():
        begin, end = _marked(name)
        head, rest = page.read_text().split(begin)
        page.write_text(head + begin + table() + end + rest.split(end)[1])
