r"""One run: a method trained with one seed and evaluated, kept as a JSON file and its weights."""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from statistics import mean

import deepinv as dinv
import torch
from methods import BASELINES, CASES, METHODS, build, fit, optimizer_name, stepsizes
from problem import Problem
from problems import PROBLEMS

import deepinv_jitter as dj
from deepinv_jitter.training.preemption import replacing

SCHEMA = 2
DRAWS = 8  # random perturbations of each sample and radius
#: What the evaluation of every model on the same data starts from.
EVALUATION_SEED = 7


@dataclass(frozen=True)
class Run:
    """What is trained. The algorithm is "gd" or "pgd", "unet" for DDPM, "reference" for none."""

    problem: str
    algorithm: str
    method: str
    seed: int = 0
    sigma: float | None = None  # of input, SGD and SPGD jittering, instead of the preset's
    step: str = "learned"  # the step size: "learned", "fixed" or "normalised"
    optimizer: str | None = None  # instead of that of the preset or the method
    budget: float = 1  # times the epochs of the preset
    split: str = "test"  # what it is evaluated on

    @property
    def name(self) -> str:
        """The name of its files."""
        options = [] if self.sigma is None else [f"sigma{self.sigma:g}"]
        options += [] if self.step == "learned" else [self.step]
        options += [] if self.optimizer is None else [self.optimizer]
        options += [] if self.budget == 1 else [f"x{self.budget:g}"]
        options += [] if self.split == "test" else [self.split]
        method = "".join(c if c.isalnum() else "_" for c in self.method)
        return "-".join([self.problem, self.algorithm, method, *options, str(self.seed)])


class Archive:
    """
    The runs of a preset in a folder. What is asked for and is not there is trained or evaluated.
    Pages show those of its cases.

    Both files of a run are written in one step, the weights before the evaluation: a run that was
    interrupted starts at what is missing. What is half done has a folder of its own until then:
    checkpoints of the training, or the state of the evaluation.
    """

    def __init__(
        self,
        folder: Path,
        preset: str,
        *,
        cases: Iterable[tuple[str, str]] = (*CASES, BASELINES),
        data=None,
        device="cpu",
        verbose=True,
    ):
        self.folder, self.preset, cases = folder / preset, preset, tuple(cases)
        self.cases = [case for case in CASES if case in cases]
        self.others = [case for case in cases if case == BASELINES]
        self.data, self.device, self.verbose = data, device, verbose
        self.problem = cache(lambda name: PROBLEMS[name](preset, data))
        for name in ("runs", "weights"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)

    @property
    def problems(self) -> list[str]:
        return list(dict.fromkeys(problem for problem, _ in self.cases))

    @property
    def images(self) -> list[tuple[str, str]]:
        """The cases whose samples are images."""
        return [case for case in self.cases if case[0] != "points"]

    def record(self, run: Run) -> dict:
        """
        The results of a run.

        :raises ValueError: if the file is there, but was made with other settings or data.
        """
        path = self.path(run)
        record = self.kept(path, lambda: self._evaluated(run))
        self._check(path, record, run)
        return record

    def records(self, problem: str, algorithm: str, method: str, seeds: int, **options) -> list:
        """The results of all seeds of a method."""
        runs = (Run(problem, algorithm, method, seed, **options) for seed in range(seeds))
        return [self.record(run) for run in runs]

    def path(self, run: Run) -> Path:
        """Where the results of a run are kept."""
        return self.folder / "runs" / f"{run.name}.json"

    def weights(self, run: Run) -> Path:
        """Where the weights of a run are kept; they do not depend on what it is evaluated on."""
        return self.folder / "weights" / f"{replace(run, split='test').name}.pt"

    def unfinished(self, path: Path) -> Path:
        """The folder of what is half done of a file."""
        folder = self.folder / "unfinished" / f"{path.parent.name}-{path.stem}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def keep_weights(self, run: Run, model: torch.nn.Module, seconds: float) -> None:
        """Write the weights of a trained model."""
        content = {"model": model.state_dict(), "seconds": seconds}
        with replacing(self.weights(run)) as draft:
            torch.save(content | self.description(run), draft)
        shutil.rmtree(self.unfinished(self.weights(run)))

    def kept(self, path: Path, make: Callable[[], dict]) -> dict:
        """What a file holds, made and written first if it is not there."""
        if not path.exists():
            text = json.dumps(make(), indent=1) + "\n"
            with replacing(path) as draft:
                draft.write_text(text)
            shutil.rmtree(self.unfinished(path))
        return json.loads(path.read_text())

    def model(self, run: Run) -> torch.nn.Module:
        """The trained model of a run, in evaluation mode and on the CPU."""
        return self._trained(run)[0].cpu()

    def description(self, run: Run) -> dict:
        """What the results of a run depend on beside its name, as JSON holds it."""
        problem = self.problem(run.problem).at_noise(run.sigma)
        settings = asdict(problem.settings)
        del settings["test"]  # a record names its samples
        trained = run.method in METHODS  # a reference is not
        if not trained or optimizer_name(problem.settings, run.method, run.optimizer) != "SOAP":
            del settings["soap"]
        del settings["optimizer"]  # told by whether SOAP's learning rate is there
        # A method does not depend on the noise of the others
        used = METHODS[run.method].noise if trained else ()
        for name, kind in {"jitter": "jitter", "input_sigma": "input"}.items():
            by_algorithm = settings.pop(name)
            settings[name] = by_algorithm[run.algorithm] if kind in used else None
        content = {"settings": settings, "data": self.data}
        return json.loads(json.dumps(content, default=repr))  # noise models as their text

    def _check(self, path: Path, kept: dict, run: Run) -> None:
        differ = [k for k, v in self.description(run).items() if kept.get(k) != v]
        if differ:
            raise ValueError(
                f"{path} must be of this preset, but was made with other {' and '.join(differ)}: "
                "delete it, or use another folder."
            )

    def _trained(self, run: Run) -> tuple[torch.nn.Module, float]:
        problem = self.problem(run.problem).at_noise(run.sigma)
        if run.algorithm == "reference":
            return problem.references[run.method]().to(self.device), 0.0
        path = self.weights(run)
        if path.exists():
            saved = torch.load(path, map_location=self.device, weights_only=True)
            self._check(path, saved, run)
            model = build(problem, run.algorithm, run.method, run.step).to(self.device)
            model.load_state_dict(saved["model"])
            return model.eval(), saved["seconds"]
        model, seconds = fit(
            problem,
            run.algorithm,
            run.method,
            seed=run.seed,
            step=run.step,
            optimizer=run.optimizer,
            budget=run.budget,
            device=self.device,
            verbose=self.verbose,
            folder=self.unfinished(path),
        )
        self.keep_weights(run, model, seconds)
        return model, seconds

    def _evaluated(self, run: Run) -> dict:
        problem = self.problem(run.problem).at_noise(run.sigma)
        settings = problem.settings
        if self.verbose:
            print(f"\n{run.name}", flush=True)
        model, seconds = self._trained(run)
        unfinished = self.unfinished(self.path(run))
        common = {
            "model": model,
            "dataloader": problem.batches(run.split),
            "physics": problem.physics(0, self.device),
            "metrics": problem.metrics,
            "seed": EVALUATION_SEED,
            "device": self.device,
            "verbose": self.verbose,
            "pictures": 0,
        }
        report = dj.evaluate_robustness(
            **common,
            epsilons=settings.radii,
            attacks=problem.attack,
            shifts=problem.shifts,
            draws=DRAWS,
            state=unfinished / "report",
        )
        conditions = {c.label: condition(report, c.label) for c in report.conditions}
        weak = dj.evaluate_robustness(
            **common,
            epsilons=[settings.radius],
            draws=1,
            attacks=problem.attack_of_the_paper(settings.radius),
            state=unfinished / "paper attack",
        )
        label = settings.attacked.replace("worst case", "paper attack")
        conditions[label] = condition(weak, settings.attacked)
        return {
            "schema": SCHEMA,
            "run": asdict(run),
            "preset": self.preset,
            **self.description(run),
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "deepinv": dinv.__version__,
                "deepinv_jitter": dj.__version__,
            },
            "device": device_name(self.device),
            "seconds": {"train": seconds, "evaluate": report.seconds + weak.seconds},
            "parameters": sum(p.numel() for p in model.parameters()),
            "stepsize": stepsizes(model),
            "samples": report.digests,
            "conditions": conditions,
            "elsewhere": self._elsewhere(problem, model) if run.split == "test" else {},
            "risks": problem.risks(model.cpu()),
        }

    def _elsewhere(self, problem: Problem, model: torch.nn.Module) -> dict[str, list[float]]:
        """PSNR of every sample of the data that nothing was tuned on."""
        psnr, model = dinv.metric.PSNR(complex_abs=problem.complex), model.cpu()
        found = {}
        for name, (x, params, physics) in problem.elsewhere.items():
            y = physics(x, **params)
            with torch.no_grad():
                values = psnr(model(y, physics), x)
            found[name] = [float(f"{v:.6g}") for v in values.tolist()]
        return found


def scores(record: dict, condition: str, metric: str = "PSNR") -> list[float]:
    """Of every sample of a run under a condition."""
    return record["conditions"][condition]["metrics"][metric]


def error(record: dict, condition: str) -> float:
    """The mean squared error of a run under a condition."""
    return mean(scores(record, condition, "squared error"))


def condition(report: dj.RobustnessReport, label: str) -> dict:
    """The values of every sample under a condition, with the radius and the flags."""
    columns = report.values[label]
    flags = {k: int(v.sum()) for k, v in columns.items() if v.dtype == torch.bool and v.any()}
    units = {"eps": "radius", "eps/|noise|": "radius/|noise|"}
    radius = {name: columns[unit].mean().item() for name, unit in units.items() if unit in columns}
    metrics = {
        k: [float(f"{v:.6g}") for v in columns[k].tolist()] for k in report.metrics if k in columns
    }
    return {"metrics": metrics, "radius": radius, "flags": flags}


def device_name(device: str) -> str:
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads"
