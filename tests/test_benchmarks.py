"""The benchmarks at their smallest size: they run, and what they compare computes the same."""

import json
import math
import runpy
import sys
from pathlib import Path

import matplotlib
import pytest
import torch
from torch import distributed

FOLDER = Path(__file__).parent.parent / "examples" / "benchmarks"
sys.path.insert(0, str(FOLDER))

import cases  # noqa: E402
import goals  # noqa: E402
import growth  # noqa: E402
import measure  # noqa: E402
import memory  # noqa: E402
import scaling  # noqa: E402

CASES = cases.cases(quick=True, device="cpu")


def rows_of(page):
    """The cells of every line of the tables of a page."""
    lines = [line.strip("| ") for line in page.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.split(" | ")] for line in lines]


@pytest.mark.slow
@pytest.mark.parametrize("target", ["goals", "growth"])
def test_command(target, tmp_path, monkeypatch, capsys):
    matplotlib.use("Agg")
    # No numbers are looked at: other tests beside this one may disturb them, and two are a line
    monkeypatch.setattr(measure, "FOREIGN", math.inf)
    monkeypatch.setattr(goals, "EPOCH", 2)
    two = {"pixels": (16**2, 24**2), "iterations": (1, 2), "batch": (1, 2), "attack steps": (0, 1)}
    monkeypatch.setattr(growth, "AXES", two)
    monkeypatch.setattr(growth, "BASE", {axis: values[0] for axis, values in two.items()})
    arguments = ["run.py", target, "--quick", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", arguments)
    runpy.run_path(str(FOLDER / "run.py"), run_name="__main__")
    record = json.loads((tmp_path / f"{target}.json").read_text())
    page = (tmp_path / f"{target}.md").read_text()
    assert page.strip() in capsys.readouterr().out and record["torch"] in page
    if target == "goals":
        ratios = [row["ratio"]["median"] for row in record["rows"]]
        assert all(math.isfinite(r) and r > 0 for r in ratios)
        named = [cells[:2] for cells in rows_of(page)]
        assert all([row["what"], row["case"]] in named for row in record["rows"])
    else:
        assert (tmp_path / "growth.png").stat().st_size > 1000


def test_shares_command(monkeypatch, capsys):
    arguments = ["shares.py", "--quick", "--rounds", "1"]
    monkeypatch.setattr(sys, "argv", arguments)
    threads = torch.get_num_threads()
    try:
        runpy.run_path(str(FOLDER / "shares.py"), run_name="__main__")
    finally:
        torch.set_num_threads(threads)
    head, _, *rows = rows_of(capsys.readouterr().out)
    assert [row[0] for row in rows] == list(CASES)
    assert all(len(row) == len(head) and float(row[1]) > 0 for row in rows)


@pytest.mark.slow
def test_weak_scaling_is_a_table_of_rounds(monkeypatch):
    """With a single process, here."""

    def alone(command, **_):
        distributed.init_process_group(store=distributed.HashStore(), rank=0, world_size=1)
        try:
            scaling.write_steps(Path(command[-1]))
        finally:
            distributed.destroy_process_group()

    monkeypatch.setattr(scaling, "STEPS", 1)
    monkeypatch.setattr(scaling, "SIZE", (24, 24))
    monkeypatch.setattr(scaling.subprocess, "run", alone)
    _, _, *rows = rows_of(scaling.weak([1, 1], rounds=2))
    assert [row[0] for row in rows] == ["1", "1"]
    assert all(float(row[1]) > 0 and row[2] == "1 [1, 1]" for row in rows)


def test_convergence_command(monkeypatch, capsys):
    main = runpy.run_path(str(FOLDER / "convergence.py"))["main"]
    monkeypatch.setitem(main.__globals__, "FIXED", (2,))
    arguments = ["--networks", "seismic_mse", "--samples", "1", "--size", "24"]
    monkeypatch.setattr(sys, "argv", ["convergence.py", *arguments])
    main()
    rows = {row[0]: row[1:] for row in rows_of(capsys.readouterr().out)}
    assert rows["network, dB"] == ["clean", "2 steps", "standard"]
    assert rows["2 steps"][0] == "2, at most 2" and "1.000" not in rows["2 steps"][2]
    assert rows["standard"][2:] == ["1.000, at least 1.00", "1 of 1"]


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_the_plain_loop_is_the_same_network(case):
    x, y, physics = case.batch_of()
    plain, model = case.plain_model(), case.model()
    assert torch.allclose(plain(y), model(y, physics), rtol=1e-4, atol=1e-5)
    for p, q in zip(plain.network.parameters(), case.network().parameters()):
        assert torch.equal(p, q)


def test_ratios_are_medians_of_the_rounds():
    times = measure.Times({"a": [1.0, 4.0, 9.0, 8.0, 1.0], "b": [1.0, 2.0, 3.0, 2.0, 2.0]})
    ratio = times.ratio("a", "b", scale=0.5)
    assert (ratio.median, ratio.low, ratio.high, ratio.rounds) == (1.0, 0.5, 1.5, 5)
    assert goals.Row("what", "case", ratio, 1.0).met == "yes"
    assert goals.Row("what", "case", ratio, 0.9).met == "no"
    assert goals.Row("what", "case", ratio).met == ""


def test_functions_take_turns():
    calls = []
    functions = {name: lambda name=name: calls.append(name) for name in "ab"}
    times = measure.in_turns(functions, rounds=3)
    assert all(len(times.seconds[name]) == 3 for name in "ab")
    # the first calls, then every other round backwards
    assert calls[:6] == ["a", "b", "b", "a", "a", "b"]


def test_peak_memory():
    def allocate():
        first = torch.zeros(2**20)  # 4 MiB
        second = first + 1
        del first
        return second + 1

    assert 7.9 < measure.peak_memory(allocate) < 8.6


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_memory_command(tmp_path, monkeypatch, capsys):
    matplotlib.use("Agg")
    monkeypatch.setattr(sys, "argv", ["memory.py", "--quick", "--out", "memory.png"])
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(FOLDER / "memory.py"), run_name="__main__")
    page = capsys.readouterr().out
    named = [cells[:2] for cells in rows_of(page)]
    assert all([name, "2"] in named for name in memory.CASES)
    assert (tmp_path / "memory.png").stat().st_size > 1000


def test_growth_of_memory_is_a_line_after_the_warm_up():
    steps = list(range(0, 1001, 100))
    resident = [0.0, *(100 + 0.002 * step for step in steps[1:])]
    record = memory.Record(steps, resident, files=[4] * 11, children=[2] * 10 + [0])
    assert record.warm == 1 and record.slope == pytest.approx(2.0)
    page = memory.table({"case": record})
    row = ["case", "1000", "100.2", "101.2", "102.0", "+2.00", "4", "4", "2", "0"]
    assert rows_of(page)[-1] == row
