"""How fast, beside whom, and where the time goes: one part at a time.

    python tests/benchmarks/speed svgd [--sizes 1000,10 5000,50]
    python tests/benchmarks/speed report

Rounds are interleaved in one process and compilation is kept apart. Every call appends rows to
docs/results/performance/*.csv; `report` draws the plots and writes the tables of the docs from the newest row of every
case. Needs the extra `dev`.
"""

import argparse
import pathlib

import fql
import precision
import report
import rounds
import svgd
import vgf
import waiting


def size(text):
    """Read "N,d"."""
    n, d = text.split(",")
    return int(n), int(d)


def main():
    """Run a part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, help="folder of rows and tables (default: that of the docs)")
    parts = parser.add_subparsers(dest="part", required=True)
    part = parts.add_parser("svgd", help="one step of SVGD at a grid of sizes, beside the peers")
    part.add_argument("--rounds", type=int, default=9)
    part.add_argument("--sizes", type=size, nargs="*", default=svgd.SIZES)
    part = parts.add_parser("large", help="one step of large sets, by precision of products")
    part.add_argument("--rounds", type=int, default=5)
    part.add_argument("--sizes", type=size, nargs="*", default=[(100_000, 50)])
    part.add_argument("--precisions", nargs="*", default=["default"])
    part = parts.add_parser("accuracy", help="seconds to equal accuracy on two targets, beside the peers")
    part.add_argument("--rounds", type=int, default=7)
    checkout = argparse.ArgumentParser(add_help=False)
    checkout.add_argument("--vgf-reference", type=pathlib.Path, help="a checkout of github.com/ryanxhr/vgf")
    checkout.add_argument("--vgf-packages", type=pathlib.Path, help="folder of flax, ml_collections, distrax")
    part = parts.add_parser("update", parents=[checkout], help="one update of VGF, beside the authors")
    part.add_argument("--rounds", type=int, default=9)
    part.add_argument("--cases", nargs="*", choices=vgf.CASES, default=list(vgf.CASES))
    part.add_argument("--steps", type=int, nargs="*", default=[1, 5], help="L")
    part.add_argument("--updates", type=int, help="per call (default: 5, 20 or 50, by the case)")
    part.add_argument("--seeds", type=int, default=0, help="measure so many runs at once, too")
    part = parts.add_parser("fql", help="one update of FQL, beside its authors")
    part.add_argument("--fql-reference", type=pathlib.Path, help="a checkout of github.com/seohongpark/fql")
    part.add_argument("--vgf-packages", type=pathlib.Path, help="folder of flax, ml_collections, distrax")
    part.add_argument("--rounds", type=int, default=9)
    part.add_argument("--cases", nargs="*", choices=vgf.CASES, default=list(vgf.CASES))
    part = parts.add_parser("pieces", help="where one update spends its time")
    part.add_argument("--rounds", type=int, default=9)
    for name, words in (("evaluate", "an evaluation of four budgets"), ("train", "training and one evaluation")):
        part = parts.add_parser(name, parents=[checkout], help=f"{words} on cube-single, beside the authors")
        part.add_argument("--episodes", type=int, default=50)
        part.add_argument("--width", type=int, default=512 if name == "evaluate" else 256)
        part.add_argument("--lanes", type=int, default=100)
        if name == "train":
            part.add_argument("--updates", type=int, default=1000)
    part = parts.add_parser("wait", parents=[checkout], help="imports, compilation, memory")
    part.add_argument("--rounds", type=int, default=3)
    kinds = ("import", "compile", "memory")
    part.add_argument("--kinds", nargs="*", choices=kinds, default=list(kinds))
    parts.add_parser("precision", help="what products in bfloat16 do to SVGD")
    parts.add_parser("report", help="plots and tables from what was measured")
    options = parser.parse_args()
    rounds.OUT = options.out or rounds.OUT
    if options.part == "svgd":
        svgd.grid(options.rounds, options.sizes)
    elif options.part == "large":
        svgd.large(options.rounds, options.sizes, options.precisions)
    elif options.part == "accuracy":
        svgd.accuracy(options.rounds)
    elif options.part == "fql":
        fql.update(options.fql_reference, options.vgf_packages, options.rounds, options.cases)
    elif options.part == "pieces":
        vgf.pieces(options.rounds)
    elif options.part == "precision":
        precision.precision()
    elif options.part == "report":
        report.write(here=options.out is None)
    else:
        theirs = options.vgf_reference, options.vgf_packages
        if options.part == "update":
            vgf.update(*theirs, options.rounds, options.cases, options.steps, options.updates, options.seeds)
        elif options.part == "evaluate":
            vgf.evaluation(*theirs, options.episodes, options.width, options.lanes)
        elif options.part == "train":
            vgf.train_and_evaluate(*theirs, options.updates, options.episodes, options.width, options.lanes)
        else:
            waiting.waiting(*theirs, options.rounds, options.kinds)


if __name__ == "__main__":
    main()
