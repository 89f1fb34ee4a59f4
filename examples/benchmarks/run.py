r"""
Time and memory, as ratios of one run
=====================================

``python examples/benchmarks/run.py goals`` measures what the library promises about its speed and
memory and prints a table; ``growth`` measures how the cost of a training step grows with the image,
the iterations, the batch and the steps of an attack, and what a long training would cost. Both
write their numbers as JSON as well. ``--quick`` tries everything at small sizes in a minute: its
numbers mean nothing.

Every ratio is the median of the ratios of single rounds, in which all that is compared takes turns;
rounds during which other processes used the machine are repeated. Compare nothing across runs. What
was interrupted goes on with the group of rows it was at.
"""

import argparse
import json
import platform
import sys
from dataclasses import asdict
from pathlib import Path

import deepinv
import goals
import growth
import torch
from cases import Case, cases
from measure import Ratio

import deepinv_jitter as dj
from deepinv_jitter.evaluation.tables import markdown
from deepinv_jitter.training.preemption import replacing

TITLES = {"goals": "Speed and memory against goals", "growth": "How the cost grows"}


def table(rows: list[goals.Row]) -> str:
    """The rows as a Markdown table."""
    lines = [["what", "case", "median", "quartiles", "rounds", "goal", "met"]]
    for row in rows:
        goal = "" if row.goal is None else f"{row.goal:.3g}"
        r = row.ratio
        quartiles = f"{r.low:.3g} to {r.high:.3g}"
        cells = (f"{r.median:.3g}", quartiles, r.rounds, goal, row.met)
        lines.append([row.what, row.case, *cells])
    return markdown(lines)


def measured(quick: bool, device: str, path: Path) -> list[goals.Row]:
    """Every row, printed as it comes; a file keeps what is done, and is gone on with."""
    all_cases, rounds = cases(quick, device), 1 if quick else 7
    sections = [c for c in all_cases.values() if c.kind == "seismic"]
    traces = Case(
        name="traces of 4096",
        kind="seismic",
        size=(600 if quick else 4096, 64),
        batch=1,
        device=device,
    )
    few, some, many, most = (1, 1, 1, 1) if quick else (3, 3, 9, 42)
    attacks = (1, 2) if quick else (3, 10, 20)
    plan = [
        (goals.gradients, [*sections, traces], 2 * rounds),
        (goals.mri_gradients, [c for c in all_cases.values() if c.kind == "mri"], 2 * rounds),
        (goals.small_steps, all_cases["points"], most),
        *((goals.components, case, rounds) for case in all_cases.values() if case.kind != "points"),
        (goals.checkpoints, all_cases["MRI 96"], rounds),
        (goals.steps, all_cases["MRI 96"], many),
        (goals.steps, all_cases["seismic 128"], many),
        # A step takes seconds here
        (goals.steps, all_cases["MRI 160"], some),
        (goals.steps, all_cases["seismic 352"], some),
        # and up to half a minute here
        (goals.attack_steps, all_cases["MRI 96"], attacks, few),
        (goals.attack_steps, all_cases["seismic 128"], attacks, few),
        (goals.half_precision, all_cases["MRI 96"], 1),
    ]
    if not quick:  # it takes half a minute, whatever the size
        plan += [(goals.compiled, c, few) for c in all_cases.values() if c.kind != "points"]
        plan += [(goals.compiled, all_cases["points"], most)]
    done = json.loads(path.read_text()) if path.exists() else {}
    for function, *arguments in plan:
        case = arguments[0].name if isinstance(arguments[0], Case) else "all"
        group = f"{function.__name__}, {case}"
        if group in done:
            continue
        rows = []
        for row in function(*arguments):
            rows.append(row)
            goal = "" if row.goal is None else f"goal {row.goal:.3g}: {row.met}"
            print(f"{row.case:15} {row.what:60} {row.ratio!s:28} {goal}", flush=True)
        done[group] = [asdict(row) for row in rows]
        with replacing(path) as draft:
            draft.write_text(json.dumps(done, indent=1))
    return [
        goals.Row(**row | {"ratio": Ratio(**row["ratio"])})
        for group in done.values()
        for row in group
    ]


def environment(device: str) -> dict:
    cuda = torch.device(device).type == "cuda"
    name = torch.cuda.get_device_name(device) if cuda else _processor()
    return {
        "device": name,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "deepinv": deepinv.__version__,
        "deepinv_jitter": dj.__version__,
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if sys.platform == "linux" else ():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Time and memory, as ratios of one run")
    parser.add_argument("target", choices=TITLES)
    parser.add_argument("--quick", action="store_true", help="small sizes, to try it")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("results"))
    args = parser.parse_args(arguments)
    args.out.mkdir(parents=True, exist_ok=True)

    where = environment(args.device)
    if args.target == "growth":
        record = growth.measured(args.quick, args.device)
        text = growth.render(record, args.out / "growth.png")
    else:
        kept = args.out / f"goals_so_far{'_quick' * args.quick}.json"
        rows = measured(args.quick, args.device, kept)
        record = {"rows": [asdict(row) for row in rows]}
        text = table(rows)
        kept.unlink()
    (args.out / f"{args.target}.json").write_text(json.dumps(where | record, indent=1))
    about = ", ".join(f"{name} {value}" for name, value in where.items())
    page = f"# {TITLES[args.target]}\n\n{text}\n\n{about}\n"
    (args.out / f"{args.target}.md").write_text(page)
    print(f"\n{page}")


if __name__ == "__main__":
    main()
