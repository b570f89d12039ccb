"""The tables of docs/concepts/flows.md are those of code and results; `python tests/test_tables.py` writes them."""

import csv
import pathlib

import diffrax
import optax

import flowrl

DOCS = pathlib.Path(__file__).resolve().parents[1] / "docs"
PAGE, VARIANCE = DOCS / "concepts" / "flows.md", DOCS / "results" / "stationary_variance.csv"

FLOWS = {
    "SVGD": flowrl.SVGD(),
    "Ascent": flowrl.Ascent(),
    "Langevin": flowrl.Langevin(),
    "ALDI": flowrl.ALDI(),
    "Blob": flowrl.Blob(),
    "KSDDescent": flowrl.KSDDescent(),
    "MMDFlow": flowrl.MMDFlow(),
    "SinkhornFlow": flowrl.SinkhornFlow(),
    "Consensus": flowrl.Consensus(),
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


def _flows():
    head = ["flow", "asks the target for", "temperature", "random", "energy", *SOLVERS]
    rows = []
    for name, flow in FLOWS.items():
        traits = flow.traits
        random = [word for word, is_so in (("noise", traits.diffuses), ("jumps", traits.jumps)) if is_so]
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


def _domains():
    head = ["solver", *DOMAINS]
    ascent = flowrl.Ascent()
    rows = [
        [name, *("yes" if flowrl.supports(ascent, solver, domain) else "–" for domain in DOMAINS.values())]
        for name, solver in SOLVERS.items()
    ]
    return _table(head, rows)


def _variance():
    rows = list(csv.DictReader(VARIANCE.read_text().splitlines()))
    methods = list(dict.fromkeys(row["method"] for row in rows))
    found = {(row["method"], int(row["d"]), int(row["n"])): float(row["variance"]) for row in rows}
    cases = sorted({(d, n) for _, d, n in found})
    head = ["d", "n", *methods]
    return _table(head, [[str(d), str(n), *(f"{found[m, d, n]:.2f}" for m in methods)] for d, n in cases])


TABLES = {"flows": _flows, "domains": _domains, "variance": _variance}


def _marked(name):
    return f"<!-- table: {name} -->\n\n", f"\n\n<!-- end: {name} -->"


def test_the_tables_of_the_docs_are_those_of_the_code():
    text = PAGE.read_text()
    for name, table in TABLES.items():
        begin, end = _marked(name)
        written = text.split(begin)[1].split(end)[0]
        assert written == table(), f"python {pathlib.Path(__file__).name} writes the table of {name} anew"


if __name__ == "__main__":
    page = PAGE.read_text()
    for name, table in TABLES.items():
        begin, end = _marked(name)
        head, rest = page.split(begin)
        page = head + begin + table() + end + rest.split(end)[1]
    PAGE.write_text(page)
