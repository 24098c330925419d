"""The tables of conformance.md, from what `kvsharer conformance --json` printed: python conformance.py FILE.json …"""

import json
import sys

GROUPS = {
    "attention, fused": "attention, nobody looking",
    "attention, with key mass": "attention with key mass of all queries",
    "attention, with key mass of some queries": "attention with key mass of some queries",
    "rotary encoding": "rotary encoding, positions up to 200,004",
    "store": "store: appended, scattered, compacted",
    "storage: half": "8 and 4 bits: of the bound of half a step",
    "storage: chunks": "8 and 4 bits: chunks against single tokens",
    "storage: written": "8 and 4 bits: keys written anew",
    "cache": "cache: chunks, padding, sharing, windows, branches",
    "search": "search: distances, similarities, greedy steps",
    "policy: attends": "every policy attends to what it keeps",
    "policy: attends, quantised": "the same in 8 and 4 bits",
    "policy: keeps": "every policy keeps what f32 keeps (share that differs)",
    "linear": "linear layers, one row to many",
    "model": "a tiny model of every family: logits, trials",
}


def group(case: str) -> str:
    """The row a case belongs to; a real model's cases have rows of their own."""
    kind, rest = case.split(": ", 1)
    if kind.startswith("policy "):
        what = rest.split()[0]
        return f"policy: {what}, quantised" if what == "attends" and "quant:" in case else f"policy: {what}"
    if kind.startswith("storage"):
        return f"storage: {rest.split()[0]}"
    if kind.startswith("model "):
        return "model"
    return kind if kind in GROUPS else case


def cell(rows: list[dict]) -> str:
    failed = [row for row in rows if row["verdict"] == "failed"]
    measured = [row for row in rows if row["worst_error"] is not None]
    if failed:
        return f"{len(failed)} of {len(rows)} FAILED"
    if not measured:
        return "skipped"
    worst = max(measured, key=lambda row: row["worst_error"] / row["tolerance"] if row["tolerance"] else 0)
    return f"{worst['worst_error']:.2g} of {worst['tolerance']:g}"


def main(paths: list[str]) -> None:
    runs = [json.load(open(path)) for path in paths]
    names = [f"{run['device']} {run['dtype']}" for run in runs]
    rows: dict[str, list[list[dict]]] = {}
    for index, run in enumerate(runs):
        for row in run["conformance"]:
            rows.setdefault(group(row["case"]), [[] for _ in runs])[index].append(row)
    print("| worst error, and tolerance | cases |", " | ".join(names), "|\n|" + "---|" * (len(runs) + 2))
    for name, columns in rows.items():
        print(f"| {GROUPS.get(name, name)} | {max(map(len, columns))} |", " | ".join(map(cell, columns)), "|")
    print("\n| backend | passed | skipped | failed | seconds |\n|---|---|---|---|---|")
    for name, run in zip(names, runs):
        why = sorted({row["note"] for row in run["conformance"] if row["verdict"] == "skipped"})
        skipped = f"{run['skipped']} ({'; '.join(why)})" if why else "0"
        print(f"| {name} | {run['passed']} | {skipped} | {run['failed']} | {run['seconds']:.0f} |")


main(sys.argv[1:])
