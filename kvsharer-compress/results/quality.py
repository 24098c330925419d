"""The quality table of this crate's README: stepwise perplexity of every method at matched bytes.

    python quality.py --text wiki.test.raw [--kvsharer ../../target/release/kvsharer] [--model smollm2-135m-instruct]
                      [--out quality.jsonl] [--jobs 16] [--threads 1]

Runs `kvsharer search` for two maps of 8 layers, lets `kvsharer plan --kv-budget` find the budget of every method that
fits 50 % and 25 % of the bytes of a full cache, and scores each stack with `kvsharer eval --task stepwise=TEXT`:
documents of 2,048 tokens, 1,024 of which are the prompt, in one pass; the other 1,024 are scored token by token.
Results are appended to --out, one line a stack; a run that was cut short goes on where it stopped. Prints the table.
Needs Python alone.
"""

import argparse
import json
import math
import pathlib
import subprocess
from concurrent.futures import ThreadPoolExecutor

WINDOW, PREFILL, DOCUMENTS = 2048, 1024, 4
METHODS = [
    "streaming-llm", "window", "h2o", "h2o:variant=streaming", "snapkv:decode=evict", "pyramidkv:decode=evict",
    "tova", "knorm", "random", "h2o:protect=4", "tova:protect=4", "knorm:protect=4", "random:protect=4",
]
MAPS = {"paper's map": "dissimilar", "similar-first map": "similar"}


def stacks():
    """(name, map, policies, share of the full bytes or None)"""
    yield "full", None, [], None
    for name in MAPS:
        yield name, name, [], None
    for bits in (8, 4):
        yield f"int{bits}", None, [f"quant:bits={bits}"], None
        yield f"int{bits}", "similar-first map", [f"quant:bits={bits}"], None
    yield "pyramidinfer-cache:final=50%", None, ["pyramidinfer-cache:final=50%,decode=evict"], None
    yield "pyramidinfer-cache:final=10%", None, ["pyramidinfer-cache:final=10%,decode=evict"], None
    for share in (50, 25):
        for method in METHODS:
            yield method, None, [method], share
    for share in (50, 25):
        for method in METHODS[:9]:
            yield method, "similar-first map", [method], share


def run(arguments, *command):
    base = [arguments.kvsharer, *command, "--model", arguments.model, "--json", "--threads", str(arguments.threads)]
    done = subprocess.run(base, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(base)}\n{done.stderr}")
    return json.loads(done.stdout)


def strategy(arguments, name):
    path = pathlib.Path(arguments.out).with_name(f"{MAPS[name]}.json")
    if not path.exists():
        run(arguments, "search", "--share", "8", "--order", MAPS[name], "--output", str(path))
    return path


def measure(arguments, full, stack):
    name, map_name, policies, share = stack
    options = [] if map_name is None else ["--strategy", str(strategy(arguments, map_name))]
    lengths = ["--tokens", str(WINDOW), "--prompt", str(PREFILL)]
    specs = [word for policy in policies for word in ("--policy", policy)]
    if share is not None:
        budget = ["--kv-budget", str(full * share // 100)]
        solved = run(arguments, "plan", *options, *specs, *lengths, *budget)["policies"]
        specs = [word for spec in solved if not spec.startswith("sharing:") for word in ("--policy", spec)]
    plan = run(arguments, "plan", *options, *specs, *lengths)
    scored = run(
        arguments, "eval", *options, *specs, "--task", f"stepwise={arguments.text}", "--window", str(WINDOW),
        "--prefill", str(PREFILL), "--limit", str(DOCUMENTS), "--batch", str(DOCUMENTS),
    )
    metric = scored["results"][0]["metrics"]["perplexity"]
    line = {
        "name": name, "map": map_name, "share": share, "policies": [s for s in specs if s != "--policy"],
        "kv_bytes": plan["plan_bytes"], "bookkeeping_bytes": plan["bookkeeping_bytes"], "full_bytes": plan["full_bytes"],
        "perplexity": metric["value"], "stderr": metric["stderr"], "tokens": scored["results"][0]["tokens"],
        "seconds": scored["seconds"], "model": scored["model"], "library": scored["library"],
        "text_hash": scored["results"][0]["text_hash"], "dtype": scored["dtype"], "device": scored["device"],
    }
    with open(arguments.out, "a", encoding="utf-8") as out:
        out.write(json.dumps(line) + "\n")
    return line


def key(line):
    return line["name"], line["map"], line["share"]


def table(lines):
    by_key = {key(line): line for line in lines}
    full = by_key["full", None, None]["perplexity"]
    cell = lambda line: "" if line is None else f"{line['perplexity']:.2f} (x{line['perplexity'] / full:.3f})"
    rows = ["| without a set budget | KV bytes of full | perplexity (of full) |", "|---|---|---|"]
    for (name, map_name, share), line in by_key.items():
        if share is None:
            names = " + ".join(dict.fromkeys(filter(None, [map_name, name])))
            rows.append(f"| {names} | {100 * line['kv_bytes'] / line['full_bytes']:.1f} % | {cell(line)} |")
    columns = [(None, 50), (None, 25), ("similar-first map", 50), ("similar-first map", 25)]
    rows += ["", "| at matched bytes | alone, 50 % | alone, 25 % | with the map, 50 % | with the map, 25 % |"]
    rows.append("|---|---|---|---|---|")
    for method in METHODS:
        cells = " | ".join(cell(by_key.get((method, *column))) for column in columns)
        rows.append(f"| `{method}` | {cells} |")
    return "\n".join(rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", required=True)
    parser.add_argument("--kvsharer", default=str(pathlib.Path(__file__).parents[2] / "target/release/kvsharer"))
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--out", default="quality.jsonl")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    out = pathlib.Path(arguments.out)
    lines = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    done = {key(line) for line in lines}
    full = run(arguments, "plan", "--tokens", str(WINDOW), "--prompt", str(PREFILL))["full_bytes"]
    for name in MAPS:
        strategy(arguments, name)
    missing = [stack for stack in stacks() if (stack[0], stack[1], stack[3]) not in done]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        lines += pool.map(lambda stack: measure(arguments, full, stack), missing)
    assert all(math.isfinite(line["perplexity"]) for line in lines)
    print(table(lines))


if __name__ == "__main__":
    main()
