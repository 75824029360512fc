"""The steps of `quickstart.sh`, each a command that a user could type.

Finished steps are not repeated: run it again to go on where it stopped.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import resource
import shlex
import subprocess
import sys
import time
from pathlib import Path

from glm_jax.documents import Counts, read_documents
from glm_jax.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / "configs" / "glm_tiny.py"
PACKAGES = ("glm-jax", "jax", "flax", "optax", "orbax-checkpoint", "sentencepiece", "numpy")
ALMANAC_VOCAB, CORPUS_VOCAB = 1500, 8000
SAMPLES_PER_LANGUAGE = 2


def main() -> None:
    options = parse_arguments()
    work = options.workdir.absolute()
    started = time.time()
    remember_inputs(work, options.corpus)
    corpus = options.corpus or make_almanac(work)
    train_tokenizer(work, corpus, CORPUS_VOCAB if options.corpus else ALMANAC_VOCAB)
    prepare(work, corpus)
    train(work)
    questions = corpus_questions(corpus) if options.corpus else heldout_questions(work)
    samples = fill(work, questions)
    results = validation(work) if options.corpus else heldout_exact_match(work)
    verified = export(work)
    write_summary(work, results, samples, verified, time.time() - started)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="From nothing to a verified PyTorch export.")
    parser.add_argument(
        "--corpus",
        action="append",
        type=lambda path: str(Path(path).absolute()),
        default=[],
        help=".jsonl (fields text, language) or .txt, gzipped or not; repeatable; "
        "by default the built-in almanac",
    )
    parser.add_argument("--workdir", type=Path, default=Path("quickstart"), help="output folder")
    return parser.parse_args()


def remember_inputs(work: Path, corpus: list[str]) -> None:
    """Creates the folder; refuses one that was begun with another corpus."""
    for path in corpus:
        if not Path(path).is_file():
            fail(f"--corpus {path} does not exist")
    note = work / "inputs.json"
    if note.exists():
        before = json.loads(note.read_text())
        if before != corpus:
            fail(f"--workdir {work} was begun with --corpus {before or 'of its own'}, not {corpus}")
        return
    if work.exists() and any(work.iterdir()):
        fail(f"--workdir {work} is not empty and is no quickstart")
    work.mkdir(parents=True, exist_ok=True)
    note.write_text(json.dumps(corpus))


def make_almanac(work: Path) -> list[str]:
    out = work / "almanac"
    once(out, "-m", "glm_jax.almanac", f"--out={out}")
    return [str(path) for path in sorted(out.glob("corpus_*.jsonl"))]


def train_tokenizer(work: Path, corpus: list[str], vocab_size: int) -> None:
    inputs = [f"--input={path}" for path in corpus]
    script = str(ROOT / "tokenizers" / "train.py")
    out = work / "tokenizer"
    once(out, script, *inputs, f"--vocab_size={vocab_size}", "--on_error=skip", f"--out={out}")


def prepare(work: Path, corpus: list[str]) -> None:
    inputs = [f"--input={path}" for path in corpus]
    out, tokenizer = work / "data", work / "tokenizer"
    flags = (f"--tokenizer={tokenizer}", "--on_error=skip", f"--out={out}")
    once(out, "-m", "glm_jax.prepare", *inputs, *flags)


def train(work: Path) -> None:
    data, run = work / "data", work / "run"
    overrides = f"--config.data.dir={data}"
    step("-m", "glm_jax.train", f"--config={CONFIG}", overrides, f"--workdir={run}")


def heldout_questions(work: Path) -> list[dict]:
    """The first held-out questions of each language."""
    lines = (work / "almanac" / "heldout.jsonl").read_text().splitlines()
    questions = [json.loads(line) for line in lines]
    return [
        question
        for language in sorted({question["language"] for question in questions})
        for question in [q for q in questions if q["language"] == language][::17][
            :SAMPLES_PER_LANGUAGE
        ]
    ]


def corpus_questions(corpus: list[str]) -> list[dict]:
    """The beginnings of a few documents of each language with a piece blanked."""
    questions, wanted = [], {}
    for document in read_documents(corpus, "skip", Counts()):
        text = document.text[:80]
        if wanted.setdefault(document.language, SAMPLES_PER_LANGUAGE) and len(text) >= 40:
            wanted[document.language] -= 1
            start, end = 30, 30 + (3 if document.language == "zh" else 8)
            question = f"{text[:start].rstrip()}[MASK]{text[end:]}"
            answer = text[start:end]
            questions.append({"text": question, "answer": answer, "language": document.language})
        if not any(wanted.values()) and len(wanted) > 1:
            break
    return questions


def fill(work: Path, questions: list[dict]) -> list[dict]:
    """Fills the questions and shows them."""
    texts = [f"--text={question['text']}" for question in questions]
    filled = capture("-m", "glm_jax.fill", f"--workdir={work / 'run'}", "--json", *texts)
    samples = []
    for question, line in zip(questions, filled.splitlines(), strict=True):
        answer = json.loads(line)["answers"][0].strip()
        samples.append({**question, "filled": answer})
        print(f"  {question['text']}  ->  {answer}   (the text says: {question['answer'].strip()})")
    return samples


def heldout_exact_match(work: Path) -> dict:
    heldout = work / "almanac" / "heldout.jsonl"
    task = ("--task=fill", f"--input={heldout}")
    exact = json.loads(capture("-m", "glm_jax.evaluate", f"--workdir={work / 'run'}", *task))
    print(f"  exact match on held-out wordings: {exact['exact_match']}")
    return {"heldout": {"exact_match": exact["exact_match"], "n": exact["n"]}, **validation(work)}


def validation(work: Path) -> dict:
    """Figures of the last validation, and of the first where there were several."""
    lines = [json.loads(line) for line in (work / "run" / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if line["kind"] == "validation"]
    return {"first_validation": lines[0], "last_validation": lines[-1]}


def export(work: Path) -> bool:
    """Writes the PyTorch folder; True if it was also verified, which needs torch."""
    verify = all(importlib.util.find_spec(name) for name in ("torch", "transformers"))
    flags = [f"--from={work / 'run'}", f"--out={work / 'export'}", "--overwrite"]
    step("-m", "glm_jax.export", *flags, *(["--verify"] if verify else []))
    if not verify:
        print(
            "torch and transformers are not installed: the export was written, not verified.\n"
            f"  {ROOT}/.venv/bin/pip install -c {ROOT}/constraints.txt torch transformers"
        )
    return verify


def write_summary(
    work: Path, results: dict, samples: list[dict], verified: bool, seconds: float
) -> None:
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss  # KiB on Linux, bytes on macOS
    summary = {
        **results,
        "steps": results["last_validation"]["step"],
        "seconds": round(seconds, 1),
        "peak_memory_mib": round(peak / (2**20 if sys.platform == "darwin" else 2**10)),
        "export_verified": verified,
        "samples": samples,
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "python": platform.python_version(),
    }
    path = work / "summary.json"
    path.write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    print(f"\ndone in {seconds:.0f} s; PyTorch model in {work / 'export'}, summary in {path}")


def once(out: Path, *command: str) -> None:
    """Runs a step unless its output is there; the steps write theirs atomically."""
    if out.exists():
        print(f"\n== {out} is there")
    else:
        step(*command)


def step(*command: str) -> None:
    _run(command)


def capture(*command: str) -> str:
    return _run(command, stdout=subprocess.PIPE).stdout.decode()


def _run(command: tuple[str, ...], **options) -> subprocess.CompletedProcess:
    print(f"\n== python {shlex.join(command)}", flush=True)
    cache = {"JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "jax")} | os.environ
    finished = subprocess.run([sys.executable, *command], env=cache, check=False, **options)
    if finished.returncode:
        fail(f"python {shlex.join(command[:2])} ended with exit code {finished.returncode}")
    return finished


def fail(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        fail(str(error))
