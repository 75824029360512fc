"""The steps of `quickstart.sh`, each a command that a user could type.

Finished steps are not repeated: run it again to go on where it stopped.
"""

import argparse
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
from glm_jax.versions import versions

ROOT = Path(__file__).resolve().parent.parent
CONFIG = "configs/glm_tiny.py"
ALMANAC_VOCAB, CORPUS_VOCAB = 1500, 8000
SAMPLES_PER_LANGUAGE = 2


def main() -> None:
    options = parse_arguments()
    work = options.workdir.absolute()
    remember_inputs(work, options.corpus)
    started = time.time()
    try:
        corpus = options.corpus or make_almanac(work)
        train_tokenizer(work, corpus, options)
        prepare(work, corpus, options.language)
        train(work, "" if options.corpus else ":almanac")
        questions = corpus_questions(corpus) if options.corpus else heldout_questions(work)
        samples = fill(work, questions)
        results = validation(work) if options.corpus else heldout_exact_match(work)
        verified = export(work)
    finally:
        costs = remember_costs(work, time.time() - started)
    write_summary(work, results, samples, verified, costs)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="From nothing to a verified PyTorch export.")
    parser.add_argument(
        "--corpus",
        action="append",
        type=lambda path: str(Path(path).absolute()),
        default=[],
        help=".jsonl (fields text, language) or .txt (a document a line), gzipped or not; "
        "repeatable; by default the built-in almanac",
    )
    parser.add_argument("--workdir", type=Path, default=Path("quickstart"), help="output folder")
    parser.add_argument("--language", default="auto", help="of a corpus: auto, en or zh")
    parser.add_argument("--vocab_size", type=int, help=f"of a corpus; by default {CORPUS_VOCAB}")
    options = parser.parse_args()
    if options.vocab_size is None:
        options.vocab_size = CORPUS_VOCAB if options.corpus else ALMANAC_VOCAB
    return options


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


def train_tokenizer(work: Path, corpus: list[str], options: argparse.Namespace) -> None:
    """Every character of the almanac gets a piece: there are few."""
    inputs = [f"--input={path}" for path in corpus]
    flags = [f"--vocab_size={options.vocab_size}", "--on_error=skip"]
    if not options.corpus:
        flags.append("--character_coverage=1.0")
    out = work / "tokenizer"
    once(out, "tokenizers/train.py", *inputs, *flags, f"--out={out}")


def prepare(work: Path, corpus: list[str], language: str) -> None:
    inputs = [f"--input={path}" for path in corpus]
    out, tokenizer = work / "data", work / "tokenizer"
    flags = (f"--tokenizer={tokenizer}", f"--language={language}", "--on_error=skip")
    once(out, "-m", "glm_jax.prepare", *inputs, *flags, f"--out={out}")


def train(work: Path, variant: str) -> None:
    flags = (f"--config={CONFIG}{variant}", f"--config.data.dir={work / 'data'}")
    run("-m", "glm_jax.train", *flags, f"--workdir={work / 'run'}")


def heldout_questions(work: Path) -> list[dict]:
    """A few held-out questions of each language, far apart."""
    lines = (work / "almanac" / "heldout.jsonl").read_text(encoding="utf-8").splitlines()
    questions = [json.loads(line) for line in lines]
    chosen = []
    for language in sorted({question["language"] for question in questions}):
        of_language = [question for question in questions if question["language"] == language]
        chosen += of_language[:: len(of_language) // SAMPLES_PER_LANGUAGE][:SAMPLES_PER_LANGUAGE]
    return chosen


def corpus_questions(corpus: list[str]) -> list[dict]:
    """The beginnings of a few documents of each language with a piece blanked."""
    questions, taken = [], {"en": 0, "zh": 0}
    for document in read_documents(corpus, "skip", Counts()):
        text = " ".join(document.text.replace("\0", " ").split())[:80]
        if len(text) >= 40 and taken[document.language] < SAMPLES_PER_LANGUAGE:
            taken[document.language] += 1
            start, end = 30, 33 if document.language == "zh" else 38
            question = f"{text[:start].rstrip()}[MASK]{text[end:]}"
            answer = text[start:end]
            questions.append({"text": question, "answer": answer, "language": document.language})
        if min(taken.values()) == SAMPLES_PER_LANGUAGE:
            break
    return questions


def fill(work: Path, questions: list[dict]) -> list[dict]:
    """Fills the questions and shows them."""
    if not questions:
        print("\nno document is long enough for a sample")
        return []
    texts = "".join(f"{question['text']}\n" for question in questions)
    printed = run("-m", "glm_jax.fill", f"--workdir={work / 'run'}", "--json", stdin=texts)
    samples = []
    for question, line in zip(questions, printed.strip().split("\n"), strict=True):
        answer = json.loads(line)["answers"][0].strip()
        samples.append({**question, "filled": answer})
        print(f"  {question['text']}  ->  {answer}   (the text says: {question['answer'].strip()})")
    return samples


def heldout_exact_match(work: Path) -> dict:
    task = ("--task=fill", f"--input={work / 'almanac' / 'heldout.jsonl'}")
    printed = run("-m", "glm_jax.evaluate", f"--workdir={work / 'run'}", *task, stdin="")
    result = json.loads(printed)
    heldout = {name: result[name] for name in ("exact_match", "n")}
    print(f"  exact match on held-out wordings: {heldout['exact_match']}")
    return {"heldout": heldout, **validation(work)}


def validation(work: Path) -> dict:
    """Figures of the first and the last validation."""
    lines = (work / "run" / "metrics.jsonl").read_text().splitlines()
    figures = [line for line in map(json.loads, lines) if line["kind"] == "validation"]
    return {"first_validation": figures[0], "last_validation": figures[-1]}


def export(work: Path) -> bool:
    """Writes the PyTorch folder; True if it was also verified, which needs torch."""
    verify = all(importlib.util.find_spec(name) for name in ("torch", "transformers"))
    flags = (f"--from={work / 'run'}", f"--out={work / 'export'}", "--overwrite")
    run("-m", "glm_jax.export", *flags, *(["--verify"] if verify else []))
    if not verify:
        print("torch and transformers are not installed: the export was written, not verified")
    return verify


def remember_costs(work: Path, seconds: float) -> dict:
    """Adds this invocation to the time and peak memory of the earlier ones."""
    path = work / "costs.json"
    before = json.loads(path.read_text()) if path.exists() else {"seconds": 0, "peak_memory_mib": 0}
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    mib = peak // (2**20 if sys.platform == "darwin" else 2**10)  # bytes there, KiB on Linux
    costs = {
        "seconds": round(before["seconds"] + seconds, 1),
        "peak_memory_mib": max(before["peak_memory_mib"], mib),
    }
    path.write_text(json.dumps(costs))
    return costs


def write_summary(
    work: Path, results: dict, samples: list[dict], verified: bool, costs: dict
) -> None:
    summary = {
        **results,
        "steps": results["last_validation"]["step"],
        **costs,
        "export_verified": verified,
        "samples": samples,
        "versions": versions(),
        "python": platform.python_version(),
    }
    path = work / "summary.json"
    path.write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"\ndone in {costs['seconds']:.0f} s, {costs['peak_memory_mib']} MiB at most")
    print(f"PyTorch model: {work / 'export'}\nsummary: {path}")


def once(out: Path, *command: str) -> None:
    """Runs a step unless its output is there; the steps write theirs whole or not at all."""
    if out.exists():
        print(f"\n== {out} is there")
    else:
        run(*command)


def run(*command: str, stdin: str | None = None) -> str:
    """Runs `python COMMAND` at the root of the repository.

    Args:
      stdin: what the command reads; its output is then returned and not shown.
    """
    print(f"\n== python {shlex.join(command)}", flush=True)
    finished = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env={"JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "jax")} | os.environ,
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        stdout=None if stdin is None else subprocess.PIPE,
        encoding="utf-8",
        check=False,
    )
    if finished.returncode:
        fail(f"python {shlex.join(command[:2])} ended with exit code {finished.returncode}")
    return finished.stdout or ""


def fail(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        fail(str(error))
