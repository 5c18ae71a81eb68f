"""`kdclient distill`: teach a student to answer as its teacher does, one marked phase at a time.

Response distillation in plain torch on one device: the student learns the teacher's distribution of the
next token. Read it from top to bottom; the edges of every phase are there to be seen. An example:

    kdclient distill --teacher Qwen/Qwen2.5-0.5B-Instruct --student tiny --text corpus/ --output out/
"""

import argparse
import json
import math
import os
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

import kdclient
from kdclient import data, models
from kdclient.errors import UserError
from kdclient.losses import cross_entropy, forward_kl
from kdclient.perplexity import VERSION, Perplexity, perplexity, settings_sha256
from kdclient.progress import bar, end_bars

# What a checkpoint must have in common with the run that goes on from it.
_SAME = (
    "teacher", "student", "steps", "batch", "accumulate", "window", "held_out", "temperature",
    "cross_entropy", "learning_rate", "warm_up", "weight_decay", "clip", "seed",
    "dtype",
)  # fmt: skip


def main(args: argparse.Namespace) -> int:
    """Distil as the options of `kdclient distill` say.

    Args:
        args: Of kdclient.options.

    Returns:
        Exit code 0.

    Raises:
        UserError: If something given is wrong, or the loss is no number.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("runs on one device: start it without torchrun")
    output = _folder(args.output)
    saved = _load_checkpoint(output / "checkpoint.pt", args) if args.resume else None
    name = args.run or f"{Path(args.student).name}-response-{args.seed}"
    watt = kdclient.connect()
    # A resumed run keeps its identity, so that the archive counts a restart and adds up its energy.
    again = {"resume": True, "run_id": saved["run_id"]} if saved else {}
    try:
        with watt.run(name, method="response", seed=args.seed, **again) as run:
            scores = distill(args, run, output, saved)
    finally:
        end_bars()
    _print(scores, args.format, output)
    return 0


def distill(  # noqa: C901, PLR0912, PLR0915 - a training script reads from top to bottom
    args: argparse.Namespace, run: Any, output: Path, saved: dict[str, Any] | None
) -> dict[str, Perplexity]:
    """Distil one student.

    Args:
        args: Options of `kdclient distill`.
        run: Where phases and scores are marked (`kdclient.Run`).
        output: Folder for the checkpoint and the student.
        saved: Checkpoint to go on from.

    Returns:
        Held-out perplexity of `teacher`, `student_start` (before) and `student` (after).
    """
    # ---------------------------------------------------------------------------------------- models
    device = models.device(args.device)
    narrow = args.dtype == "bfloat16" or (args.dtype == "auto" and device.type == "cuda")
    autocast = torch.autocast(device.type, torch.bfloat16) if narrow else nullcontext()
    torch.manual_seed(args.seed)
    loading = bar(range(3), "loading teacher, student, text", unit="part")

    tokenizer = models.load_tokenizer(args.teacher, "teacher")
    teacher = models.load_model(args.teacher, "teacher", device, torch.bfloat16 if narrow else torch.float32)
    teacher.requires_grad_(False)

    loading.update()
    if args.student == models.TINY:
        student_tokenizer, student = tokenizer, models.tiny_student(tokenizer, args.window).to(device)
    else:
        student_tokenizer = models.load_tokenizer(args.student, "student")
        student = models.load_model(args.student, "student", device, torch.float32)
    # Logits beyond the tokenizer's tokens are padding, and differ between models of one family.
    vocabulary = models.check_vocabularies(
        (args.teacher, tokenizer, teacher), (args.student, student_tokenizer, student)
    )

    # ------------------------------------------------------------------------------------------ text
    loading.update()
    train, held_out = data.load(
        args.text, tokenizer, window=args.window, held_out=args.held_out, seed=args.seed
    )
    loading.update()
    loading.close()
    text_sha256 = train.sha256()

    # ------------------------------------------------------------------------------------- optimizer
    # Decay is for matrices; gains and biases have nothing to shrink towards.
    matrices = [p for p in student.parameters() if p.ndim >= 2]
    vectors = [p for p in student.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": args.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
        lr=args.learning_rate,
        betas=(0.9, 0.95),
        fused=device.type == "cuda",
    )

    # ---------------------------------------------------------------------- where it begins, or goes on
    step, position, scores = 0, 0, dict[str, Perplexity]()
    settings = settings_sha256(held_out, vocabulary)

    def evaluate(model: Any, label: str) -> None:
        with autocast:
            score = perplexity(
                model, held_out, vocabulary, run, batch=args.batch, what=f"perplexity, {label}"
            )
        scores[label] = score
        facts = {
            "harness": "perplexity",
            "harness_version": VERSION,
            "task": "held_out",
            "metric": "perplexity",
        }
        run.evaluation(**facts, **score._asdict(), settings_sha256=settings, model=label)

    if saved is None:
        evaluate(teacher, "teacher")
        evaluate(student, "student_start")
    else:
        if saved["text_sha256"] != text_sha256:
            raise UserError(f"{output}/checkpoint.pt was made with another text: give the same --text")
        student.load_state_dict(saved["student"])
        optimizer.load_state_dict(saved["optimizer"])
        step, position = saved["step"], saved["position"]
        scores |= {label: Perplexity(*score) for label, score in saved["scores"].items()}
        _restore_random_state(saved["random"])

    # -------------------------------------------------------------------------------------- training
    student.train()
    steps = bar(range(step, args.steps), "distilling", unit="step", first=step, total=args.steps)
    for step in steps:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args.learning_rate, args.warm_up, args.steps)
        loss_sum = torch.zeros((), device=device)

        with run.phase("data_load"):
            parts_of_step = []
            for _ in range(args.accumulate):
                ids, mask = train.batch(position, args.batch)
                parts_of_step.append((ids.to(device), mask.to(device)))
                position += args.batch
            # The count of the whole step, so that a token weighs the same whichever part it is in.
            valid = sum(int(mask[:, 1:].sum()) for _, mask in parts_of_step)
        if valid == 0:
            continue  # nothing but prompts: there is nothing to learn from

        for ids, mask in parts_of_step:
            # The logits at t predict the token at t + 1, so it is the next token's mask that counts.
            targets, counted = ids[:, 1:], mask[:, 1:]
            with run.phase("teacher_forward", tokens=ids.numel()), torch.no_grad(), autocast:
                teacher_logits = teacher(ids, use_cache=False).logits[:, :-1, :vocabulary]
            with run.phase("student_forward", tokens=ids.numel()):
                with autocast:
                    logits = student(ids, use_cache=False).logits[:, :-1, :vocabulary]
                loss = (1 - args.cross_entropy) * forward_kl(
                    logits, teacher_logits, counted, args.temperature, valid
                )
                if args.cross_entropy > 0:
                    loss = loss + args.cross_entropy * cross_entropy(logits, targets, counted, valid)
            with run.phase("backward", tokens=ids.numel()):
                loss.backward()
            loss_sum += loss.detach()
            del logits, teacher_logits, loss  # the largest tensors there are

        with run.phase("optimizer_step", tokens=sum(ids.numel() for ids, _ in parts_of_step)):
            norm = torch.nn.utils.clip_grad_norm_(student.parameters(), args.clip)
            # Asked before the weights are touched: what is saved is sound.
            if not (math.isfinite(loss_sum.item()) and math.isfinite(norm.item())):
                raise UserError(_diverged(step, loss_sum.item(), output))
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        steps.set_postfix(loss=f"{loss_sum.item():.3f}", refresh=False)

        if (step + 1) % args.checkpoint_every == 0 or step + 1 == args.steps:
            with run.phase("checkpoint"):
                state = {"student": student.state_dict(), "optimizer": optimizer.state_dict()}
                state |= {"step": step + 1, "position": position, "random": _random_state()}
                state |= {"scores": {label: tuple(score) for label, score in scores.items()}}
                state |= {"run_id": run.run_id, "text_sha256": text_sha256, "options": _options(args)}
                _write_checkpoint(state, output / "checkpoint.pt")
        if args.eval_every and (step + 1) % args.eval_every == 0 and step + 1 < args.steps:
            evaluate(student, "student")

    # ---------------------------------------------------------------------------------- what comes out
    with run.phase("checkpoint"):
        _write_model(student, tokenizer, output / "student")
    evaluate(student, "student")
    return scores


def learning_rate(step: int, highest: float, warm_up: int, steps: int) -> float:
    """The learning rate of a step: linear up to the highest, then a cosine down to a tenth of it.

    Args:
        step: From 0.
        highest: Reached at the end of the warm-up.
        warm_up: Steps of it.
        steps: Of the whole run.
    """
    if step < warm_up:
        return highest * (step + 1) / warm_up
    share = (step - warm_up) / max(1, steps - warm_up)
    return highest * (0.1 + 0.45 * (1 + math.cos(math.pi * share)))


def _diverged(step: int, loss: float, output: Path) -> str:
    kept = output / "checkpoint.pt"
    ending = f"the last checkpoint is {kept}" if kept.exists() else "there is no checkpoint yet"
    return f"loss or gradient is no number at step {step} (loss {loss}): lower --learning-rate; {ending}"


# ---------------------------------------------------------------------------------------- checkpoints
def _options(args: argparse.Namespace) -> dict[str, Any]:
    return {key: getattr(args, key) for key in _SAME}


def _random_state() -> dict[str, Any]:
    # All of torch's: dropout draws from the device's generator.
    return {
        "cpu": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def _restore_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["cpu"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


def _write_checkpoint(state: dict[str, Any], path: Path) -> None:
    """Whole or not at all: written beside, made durable, then renamed."""
    beside = path.with_suffix(".tmp")
    try:
        with beside.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except (OSError, RuntimeError) as error:  # torch says RuntimeError where its writer meets a full disk
        beside.unlink(missing_ok=True)
        raise UserError(f"cannot write {path}: {str(error).splitlines()[0]}") from error


def _load_checkpoint(path: Path, args: argparse.Namespace) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"nothing to resume: no {path}; leave --resume out to begin")
    try:
        saved: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        theirs = saved["options"]
    except Exception as error:  # a broken file fails in as many ways as a pickle can
        raise UserError(
            f"{path} is not a checkpoint of kdclient distill; remove it and begin again"
        ) from error
    for key, ours in _options(args).items():
        if theirs.get(key) != ours:
            flag = "--" + key.replace("_", "-")
            raise UserError(
                f"{path} was made with {flag} {theirs.get(key)}, not {ours}: give the same options to resume"
            )
    return saved


def _write_model(student: Any, tokenizer: Any, folder: Path) -> None:
    beside = folder.with_suffix(".tmp")
    try:
        shutil.rmtree(beside, ignore_errors=True)
        student.save_pretrained(beside)
        tokenizer.save_pretrained(beside)
        # The old one goes last: whatever happens, one of the two is whole.
        old = folder.with_suffix(".old")
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        beside.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise UserError(f"cannot write the student to {folder}: {error.strerror or error}") from error


def _folder(path: str) -> Path:
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {path}: {error.strerror}") from error
    if not os.access(folder, os.W_OK):
        raise UserError(f"cannot write to {path}: give another --output, or make it writable")
    return folder


def _print(scores: dict[str, Perplexity], form: str, output: Path) -> None:
    if form == "json":
        rows = [
            {"model": label, "metric": "perplexity", **score._asdict()} for label, score in scores.items()
        ]
        print(json.dumps({"student": str(output / "student"), "scores": rows}))
        return
    print(f"{'model':<14} {'held-out perplexity':>20} {'+-':>10} {'tokens':>8}")
    for label, score in scores.items():
        error = "-" if score.stderr is None else f"{score.stderr:.4g}"
        print(f"{label:<14} {score.value:>20.5g} {error:>10} {score.n:>8}")
    print(f"student written to {output / 'student'}")
