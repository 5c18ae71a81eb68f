"""Task `mmlu_dev`: the 281 MMLU development questions that lm-eval carries inside, needing no network."""

import hashlib
import json
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

NAME = "mmlu_dev"

# A worked example of the chain-of-thought prompts. One of the 282 has a fifth choice and does not match.
_QUESTION = re.compile(
    r"(?P<question>.*)\n\(A\) (.*?)\s\(B\) (.*?)\s\(C\) (.*?)\s\(D\) (.*?)"
    r"\nA: .*[Tt]he answer is \((?P<answer>[A-D])\)",
    re.DOTALL,
)
# The wording of lm-eval's own `mmlu` tasks, without examples: the examples are these questions.
_TASK = """task: {name}
dataset_path: json
dataset_kwargs:
  data_files: {data}
  cache_dir: {cache}
test_split: train
output_type: multiple_choice
doc_to_text: "The following are multiple choice questions (with answers) about {{{{subject.replace('_', ' ')}}}}.\\n\\n{{{{question.strip()}}}}\\nA. {{{{choices[0]}}}}\\nB. {{{{choices[1]}}}}\\nC. {{{{choices[2]}}}}\\nD. {{{{choices[3]}}}}\\nAnswer:"
doc_to_choice: ["A", "B", "C", "D"]
doc_to_target: answer
num_fewshot: 0
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1.0
"""  # noqa: E501 - a line of YAML that would read worse in pieces


def questions() -> list[dict[str, Any]]:
    """The questions: `subject`, `question`, four `choices`, and the number of the `answer`."""
    source = files("lm_eval") / "tasks/mmlu/flan_cot_fewshot/_cot_prompts.json"
    prompts: dict[str, str] = json.loads(source.read_text(encoding="utf-8"))
    found = []
    for subject, prompt in prompts.items():
        for example in prompt.split("\n\nQ: ")[1:]:
            match = _QUESTION.match(example)
            if match is not None:
                choices = [match[number].strip() for number in range(2, 6)]
                answer = "ABCD".index(match["answer"])
                found.append(
                    {"subject": subject, "question": match["question"], "choices": choices, "answer": answer}
                )
    return found


def write(folder: Path) -> str:
    """Write the task and its questions where lm-eval's TaskManager finds them.

    Args:
        folder: An empty folder.

    Returns:
        Hash of the questions, for the hash of the settings.
    """
    text = "".join(json.dumps(question) + "\n" for question in questions())
    data = folder / "questions.jsonl"
    data.write_text(text, encoding="utf-8")
    task = _TASK.format(name=NAME, data=json.dumps(str(data)), cache=json.dumps(str(folder / "cache")))
    (folder / f"{NAME}.yaml").write_text(task, encoding="utf-8")
    return hashlib.sha256(text.encode()).hexdigest()
