"""What the commands of kdclient ask for: apart from the scripts, so that --help loads no torch."""

import argparse

from kdclient.errors import UserError

_DISTILL = """examples:
  kdclient distill --teacher Qwen/Qwen2.5-0.5B-Instruct --student tiny --text corpus/ --output out/
  kdclient distill --teacher models/big --student models/small --text corpus/ --output out/ \\
      --steps 5000 --batch 8 --accumulate 4 --window 1024 --checkpoint-every 500
  kdclient distill ... the same again ... --resume        (go on after the last checkpoint)

Phases are marked for the wattd of this node: data_load teacher_forward student_forward backward
optimizer_step checkpoint eval. Without a daemon the marks are kept and delivered later."""

_EVALUATE = """examples:
  kdclient evaluate out/student
  kdclient evaluate Qwen/Qwen2.5-0.5B-Instruct --tasks arc_easy,hellaswag --limit 200 --json
  kdclient evaluate out/student --tasks my_task --include-path my_tasks/

tasks: `mmlu_dev` (built in, needs no network: the 281 MMLU development questions that lm-eval ships) and
any task of lm-evaluation-harness."""


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> None:  # type: ignore[override]  # argparse says NoReturn; so is raising
        """Raise instead of printing the whole usage."""
        raise UserError(f"{message}; see {self.prog} --help")


def parser() -> Parser:
    """The command line of `kdclient`."""
    top = Parser(
        prog="kdclient",
        description="The steps of a distillation study, each with its phases marked for wattd.",
        epilog="examples:\n  kdclient distill --help\n  kdclient evaluate --help",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _distill(_command(commands, "distill", "teach a student to answer as its teacher does", _DISTILL))
    _evaluate(_command(commands, "evaluate", "score a model with lm-evaluation-harness", _EVALUATE))
    return top


def _command(commands: "argparse._SubParsersAction[Parser]", name: str, what: str, examples: str) -> Parser:
    raw = argparse.RawDescriptionHelpFormatter
    return commands.add_parser(
        name, help=what, description=what, epilog=examples, formatter_class=raw, allow_abbrev=False
    )


def _distill(command: Parser) -> None:
    add = command.add_argument
    add("--teacher", required=True, metavar="MODEL", help="Hugging Face model id or folder")
    add(
        "--student",
        required=True,
        metavar="MODEL",
        help="id, folder, or `tiny`: a fresh one of about 7 M parameters",
    )
    add("--text", required=True, nargs="+", metavar="PATH", help="files or folders of .txt, .md, .jsonl")
    add("--output", required=True, metavar="DIR", help="for checkpoint.pt and the student/ of the end")
    add("--run", metavar="NAME", help="name of the run in the archive (default: STUDENT-response-SEED)")
    add("--resume", action="store_true", help="go on from the checkpoint in --output")
    add("--steps", type=_positive, default=1000, help="optimizer steps (%(default)s)")
    add("--batch", type=_positive, default=4, help="windows in a forward pass (%(default)s)")
    add(
        "--accumulate",
        type=_positive,
        default=1,
        help="forward passes a step; tokens weigh the same (%(default)s)",
    )
    add("--window", type=_window, default=256, help="tokens a window (%(default)s)")
    add("--held-out", type=_positive, default=32, metavar="WINDOWS", help="for the perplexity (%(default)s)")
    add(
        "--temperature",
        type=_above_zero,
        default=1.0,
        help="of both softmaxes; the loss is times T^2 (%(default)s)",
    )
    add(
        "--cross-entropy",
        type=_fraction,
        default=0.0,
        metavar="WEIGHT",
        help="0..1 of the loss, the rest is KL (%(default)s)",
    )
    add("--learning-rate", type=_above_zero, default=1e-3, help="at its highest (%(default)s)")
    add("--warm-up", type=_whole, default=10, metavar="STEPS", help="linear, before the cosine (%(default)s)")
    add("--weight-decay", type=_not_negative, default=0.1, help="AdamW, on matrices (%(default)s)")
    add("--clip", type=_above_zero, default=1.0, help="highest norm of the gradient (%(default)s)")
    add("--seed", type=_whole, default=0, help="of the student's weights and the order of text (%(default)s)")
    add("--checkpoint-every", type=_positive, default=500, metavar="STEPS", help="(%(default)s)")
    add(
        "--eval-every", type=_whole, default=0, metavar="STEPS", help="0: before and after only (%(default)s)"
    )
    _common(command)


def _evaluate(command: Parser) -> None:
    add = command.add_argument
    add("model", metavar="MODEL", help="Hugging Face model id or folder")
    add("--tasks", default="mmlu_dev", metavar="A,B", help="tasks, with commas between (%(default)s)")
    add("--include-path", metavar="DIR", help="folder with task files of your own")
    add("--limit", type=_positive, metavar="N", help="only the first N questions of each task")
    add(
        "--few-shot",
        type=_whole,
        default=None,
        metavar="N",
        help="examples before a question (the task's own number)",
    )
    add("--batch", type=_positive, default=8, help="questions in a forward pass (%(default)s)")
    add("--run", metavar="NAME", help="name of the run in the archive (default: evaluate-MODEL)")
    add("--label", default="student", metavar="ROLE", help="teacher, student or student_start (%(default)s)")
    add("--seed", type=_whole, default=0, help="of few-shot sampling (%(default)s)")
    _common(command)


def _common(command: Parser) -> None:
    add = command.add_argument
    add("--device", default="auto", help="auto, cpu, cuda, cuda:N (auto: a GPU if there is one)")
    add(
        "--dtype",
        choices=("auto", "float32", "bfloat16"),
        default="auto",
        help="of forward passes; losses are float32 always (auto: bfloat16 on a GPU)",
    )
    add("--format", choices=("table", "json"), default="table", help="of the result (%(default)s)")
    add("--json", action="store_const", const="json", dest="format", help="short for --format json")


def _number(
    text: str, kind: type[int] | type[float], low: float, *, strictly: bool, high: float = float("inf")
) -> float:
    try:
        value = kind(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a {'whole ' if kind is int else ''}number"
        ) from None
    if not (low < value if strictly else low <= value) or not value <= high or value == float("inf"):
        bound = f"above {low:g}" if strictly else f"{low:g} or more"
        limit = f" and at most {high:g}" if high < float("inf") else ""
        raise argparse.ArgumentTypeError(f"{text} must be {bound}{limit}")
    return value


def _whole(text: str) -> int:
    return int(_number(text, int, 0, strictly=False))


def _positive(text: str) -> int:
    return int(_number(text, int, 1, strictly=False))


def _window(text: str) -> int:
    return int(_number(text, int, 2, strictly=False))  # one token predicts nothing


def _above_zero(text: str) -> float:
    return _number(text, float, 0, strictly=True)


def _not_negative(text: str) -> float:
    return _number(text, float, 0, strictly=False)


def _fraction(text: str) -> float:
    return _number(text, float, 0, strictly=False, high=1)
