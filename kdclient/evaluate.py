"""`kdclient evaluate`: lm-evaluation-harness with its forward passes marked as phases.

kdclient evaluate out/student --tasks mmlu_dev
"""

import argparse
import hashlib
import json
import logging
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lm_eval.evaluator import evaluate as run_tasks
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

import kdclient
from kdclient import mmlu_dev, models
from kdclient.errors import UserError

HARNESS = "lm-evaluation-harness"


class Score(NamedTuple):
    """One metric of one task.

    Attributes:
        task: In the harness.
        metric: In the harness, with its filter unless that is `none`: `acc`, `exact_match:strict-match`.
        value: In the metric's own unit.
        stderr: Standard error, or None where the harness gives none.
        n: Questions scored.
        settings_sha256: Only equal hashes may be compared.
    """

    task: str
    metric: str
    value: float
    stderr: float | None
    n: int
    settings_sha256: str


class MarkedLM(HFLM):  # type: ignore[misc]  # the harness is not typed
    """A model of the harness whose forward passes are phases `eval`.

    Attributes:
        tokens_computed: What the model worked through, padding with it.
        tokens_requested: What the harness asked for; more than computed where the answers of a question
            share one forward pass.
    """

    def __init__(self, run: Any, **settings: Any) -> None:
        super().__init__(**settings)
        self._run = run
        self.tokens_computed = 0
        self.tokens_requested = 0

    def _model_call(self, inps: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        with self._run.phase("eval", tokens=inps.numel()):
            logits: torch.Tensor = super()._model_call(inps, *args, **kwargs)
        self.tokens_computed += inps.numel()
        return logits

    def _model_generate(self, context: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        with self._run.phase("eval") as phase:
            tokens: torch.Tensor = super()._model_generate(context, *args, **kwargs)
            phase.tokens = tokens.numel()
        self.tokens_computed += tokens.numel()
        self.tokens_requested += tokens.numel()
        return tokens

    def _loglikelihood_tokens(self, requests: Any, *args: Any, **kwargs: Any) -> Any:
        self.tokens_requested += sum(len(context) + len(answer) for _, context, answer in requests)
        return super()._loglikelihood_tokens(requests, *args, **kwargs)


def main(args: argparse.Namespace) -> int:
    """Evaluate as the options of `kdclient evaluate` say.

    Args:
        args: Of kdclient.options.

    Returns:
        Exit code 0.

    Raises:
        UserError: If the model or a task cannot be loaded.
    """
    # The harness' advice is about its own command line.
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    device = models.device(args.device)
    narrow = args.dtype == "bfloat16" or (args.dtype == "auto" and device.type == "cuda")
    tokenizer = models.load_tokenizer(args.model, "model")
    model = models.load_model(args.model, "model", device, torch.bfloat16 if narrow else torch.float32)
    watt = kdclient.connect()
    name = args.run or f"evaluate-{Path(args.model).name}"
    with tempfile.TemporaryDirectory(prefix="kdclient-") as folder:
        tasks, data_sha256 = _tasks(args, Path(folder))
        with watt.run(name, seed=args.seed, tokens_phase="eval") as run:
            lm = MarkedLM(
                run,
                pretrained=model,
                tokenizer=tokenizer,
                batch_size=args.batch,
                softmax_dtype=torch.float32,
            )
            results = run_tasks(lm=lm, task_dict=tasks, limit=args.limit, log_samples=False)
            scores = list(_scores(results, args, data_sha256))
            for score in scores:
                run.evaluation(
                    harness=HARNESS, harness_version=version("lm-eval"), **score._asdict(), model=args.label
                )
    _print(scores, lm, args)
    return 0


def _tasks(args: argparse.Namespace, folder: Path) -> tuple[Any, str]:
    """The tasks, as the harness holds them, and a hash of the built-in questions."""
    names = [name.strip() for name in args.tasks.split(",") if name.strip()]
    if not names:
        raise UserError("no task given: --tasks mmlu_dev, or any of lm-evaluation-harness")
    if args.include_path and not Path(args.include_path).is_dir():
        raise UserError(f"no such folder: {args.include_path} (--include-path)")
    data_sha256 = mmlu_dev.write(folder)
    paths = [str(folder)] + ([args.include_path] if args.include_path else [])
    # The harness' own thousands of tasks take seconds to look through: only where one is wanted.
    manager = TaskManager(include_path=paths, include_defaults=False)
    if not set(names) <= set(manager.all_tasks):
        manager = TaskManager(include_path=paths)
    unknown = sorted(set(names) - set(manager.all_tasks))
    if unknown:
        raise UserError(
            f"no task {', '.join(unknown)} in lm-evaluation-harness; lm_eval ls tasks lists them all"
        )
    try:
        loaded = manager.load(names)
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"cannot load the data of {args.tasks}: {reason}") from error
    for task in loaded["tasks"].values():
        _settle(task, args)
    return loaded, data_sha256


def _settle(task: Any, args: argparse.Namespace) -> None:
    """Few-shot number and seed, in the way that the harness' own command does it."""
    own = task.get_config("num_fewshot")
    if args.few_shot is not None and own != 0:  # a task that says 0 means it
        task.set_config(key="num_fewshot", value=args.few_shot)
    elif own is None:
        task.set_config(key="num_fewshot", value=0)
    task.set_fewshot_seed(seed=args.seed)


def _scores(results: Any, args: argparse.Namespace, data_sha256: str) -> Iterator[Score]:
    for task, metrics in results["results"].items():
        n = sum(results["n-samples"][leaf]["effective"] for leaf in _leaves(results, task))
        settings = _settings_sha256(results, task, args, data_sha256)
        for key, value in metrics.items():
            metric, _, chosen = key.partition(",")
            if not chosen or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            stderr = metrics.get(f"{metric}_stderr,{chosen}")
            known = float(stderr) if isinstance(stderr, int | float) else None
            name = metric if chosen == "none" else f"{metric}:{chosen}"
            yield Score(task, name, float(value), known, n, settings)


def _leaves(results: Any, task: str) -> set[str]:
    """The tasks of a group, or the task itself."""
    below = results.get("group_subtasks", {}).get(task) or []
    return set[str]().union(*(_leaves(results, name) for name in below)) if below else {task}


def _settings_sha256(results: Any, task: str, args: argparse.Namespace, data_sha256: str) -> str:
    settings = {
        "version": version("lm-eval"),
        "limit": args.limit,
        "seed": args.seed,
        "tasks": {leaf: _config(results, leaf) for leaf in sorted(_leaves(results, task))},
        "data": data_sha256 if task == mmlu_dev.NAME else None,
    }
    text = json.dumps(settings, sort_keys=True, default=lambda thing: type(thing).__name__)
    return hashlib.sha256(text.encode()).hexdigest()


def _config(results: Any, leaf: str) -> dict[str, Any]:
    config: dict[str, Any] = dict(results["configs"].get(leaf, {}))
    # Where a task lies is no setting of it.
    config["metadata"] = {k: v for k, v in (config.get("metadata") or {}).items() if k != "config_source"}
    if leaf == mmlu_dev.NAME:
        config.pop("dataset_kwargs", None)  # a temporary path; the data has a hash of its own
    return config


def _print(scores: list[Score], lm: MarkedLM, args: argparse.Namespace) -> None:
    if args.format == "json":
        tokens = {"tokens_computed": lm.tokens_computed, "tokens_requested": lm.tokens_requested}
        print(json.dumps({"model": args.model, **tokens, "scores": [score._asdict() for score in scores]}))
        return
    print(f"{'task':<24} {'metric':<16} {'value':>9} {'+-':>9} {'n':>6}")
    for score in scores:
        error = "-" if score.stderr is None else f"{score.stderr:.4f}"
        print(f"{score.task:<24} {score.metric:<16} {score.value:>9.4f} {error:>9} {score.n:>6}")
    print(f"{args.model}: {lm.tokens_computed} tokens computed for {lm.tokens_requested} requested")
