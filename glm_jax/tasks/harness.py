"""An adapter for lm-evaluation-harness (`pip install -e '.[eval]'`), and tasks of our own for it.

The harness asks how a prompt goes on, so a prompt is a document whose rest is blanked:

    Part A: [CLS] prompt [gMASK]        Part B: sop continuation

without eos after the blank (there is no text after it) and without eop, so that a continuation is
scored as in `bpb`. White space between the two belongs to the continuation. [MASK] stands for
[gMASK] where the model was trained without document blanks (`continuation.document_mask`).
"""

import collections
import contextlib
from collections.abc import Sequence
from pathlib import Path

import lm_eval
import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager

from glm_jax.errors import UserError
from glm_jax.model.decoding import DecodingOptions, Filler
from glm_jax.model.scoring import Scorer
from glm_jax.tasks.bpb import Windows, score_texts
from glm_jax.tasks.continuation import CONTROL_SYMBOLS, continuation, fit_left
from glm_jax.tasks.files import check_plain
from glm_jax.tokenizer import Tokenizer

TASKS_DIR = Path(__file__).parent / "harness_tasks"
_BOOTSTRAP_ITERATIONS = 1000  # of metrics whose standard error has no closed form


class GLMHarness(LM):
    """A GLM as the harness sees it; see the module for how a prompt is put."""

    def __init__(
        self,
        scorer: Scorer,
        filler: Filler,
        tokenizer: Tokenizer,
        windows: Windows,
        mask_id: int,
    ):
        """Wraps a scorer and a filler of the same model.

        Args:
          windows: how long documents are cut; a prompt loses its beginning where it does not fit
            one with its continuation.
          mask_id: see `continuation.document_mask`.
        """
        super().__init__()
        self._scorer = scorer
        self._filler = filler
        self._tokenizer = tokenizer
        self._windows = windows
        self._mask_id = mask_id
        self._slots = windows.window_tokens + CONTROL_SYMBOLS

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Log-probability in nats of each continuation, and whether greedy decoding writes it.

        Continuations of one prompt are scored over one reading of it.

        Raises:
          UserError: a continuation longer than a row, or a special token in a text.
        """
        _check_plain(requests, "prompt", "continuation")
        by_prompt = collections.defaultdict(list)
        for index, request in enumerate(requests):
            prompt, text = _split(*request.args)
            by_prompt[prompt].append((index, self._tokenizer.encode(text)))
        asked = [self._request(prompt, [t for _, t in some]) for prompt, some in by_prompt.items()]
        results: list = [None] * len(requests)
        for some, scores in zip(by_prompt.values(), self._scorer.score(asked), strict=True):
            for (index, _), score in zip(some, scores, strict=True):
                total = float(score.log_probs.sum(dtype=np.float64))
                results[index] = (total, bool(score.is_argmax.all()))
        return results

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Log-probability in nats of each document, by the windows of `bpb`.

        Raises:
          UserError: a special token stands in a document.
        """
        _check_plain(requests, "document")
        texts = self._tokenizer.encode_batch([text for (text,) in _arguments(requests)])
        nll, _ = score_texts(self._scorer, texts, self._windows, self._mask_id)
        return [-value for value in nll]

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Greedy continuations, each cut before the first of its stop strings.

        At most half a row is written: `max_gen_toks` counts where it asks for less.

        Raises:
          UserError: sampling is asked for, or a special token stands in a prompt.
        """
        _check_plain(requests, "prompt")
        by_length = collections.defaultdict(list)
        for index, (prompt, options) in enumerate(_arguments(requests)):
            by_length[self._new_tokens(options)].append((index, prompt))
        results = [""] * len(requests)
        for new_tokens, prompts in by_length.items():
            texts = [self._blanked(prompt, new_tokens) for _, prompt in prompts]
            filled = self._filler.fill(texts, DecodingOptions(max_new_tokens=new_tokens))
            for (index, _), result in zip(prompts, filled, strict=True):
                results[index] = _until(result.answers[-1], requests[index].args[1])
        return results

    def _request(self, prompt: str, answers: list[np.ndarray]):
        longest = max(map(len, answers))
        context = self._tokenizer.encode(prompt)
        context = fit_left(context, longest, self._slots)
        return continuation(context, answers, self._mask_id, self._tokenizer.special)

    def _new_tokens(self, options: dict) -> int:
        if options.get("do_sample") or options.get("temperature"):
            raise UserError(f"harness: generation is greedy here, the task asks for {options}")
        return min(options.get("max_gen_toks", self._slots), self._slots // 2)

    def _blanked(self, prompt: str, new_tokens: int) -> str:
        """The prompt with its blank; what does not fit a row goes from its beginning."""
        room = self._slots - CONTROL_SYMBOLS - 1 - new_tokens  # eos follows a [MASK]
        tokens = self._tokenizer.encode(prompt)
        while len(tokens) > room:  # text that is encoded again may have another length
            prompt = self._tokenizer.decode(tokens[-room:]).lstrip("\ufffd")
            tokens = self._tokenizer.encode(prompt)
        is_document = self._mask_id == self._tokenizer.special.gmask
        return prompt + ("[gMASK]" if is_document else "[MASK]")


def evaluate(
    model: GLMHarness, tasks: Sequence[str], folder: str | Path = TASKS_DIR, limit: int = 0
) -> dict:
    """Figures of tasks of the harness: values and standard errors by task and metric, and n.

    Args:
      tasks: names from `folder` or from the harness.
      folder: task files; relative paths of data in them count from it.
      limit: at most so many items of each task; 0 for all.

    Raises:
      UserError: there is no such task, or no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"--harness_path {folder} is not a folder")
    manager = _find_tasks(folder.absolute(), set(tasks))
    with contextlib.chdir(folder):
        found = lm_eval.simple_evaluate(
            model=model,
            tasks=list(tasks),
            task_manager=manager,
            limit=limit or None,
            bootstrap_iters=_BOOTSTRAP_ITERATIONS,
            log_samples=False,
        )
    return {
        "scores": {name: _metrics(values, "") for name, values in found["results"].items()},
        "n": {name: counts["effective"] for name, counts in found["n-samples"].items()},
        "stderr": {name: _metrics(values, "_stderr") for name, values in found["results"].items()},
    }


def _find_tasks(folder: Path, names: set[str]) -> TaskManager:
    """The index of `folder`, or where it lacks a name, of it and of the harness's own tasks."""
    for include_defaults in (False, True):  # to read the thousands of the harness takes a while
        manager = TaskManager(include_path=str(folder), include_defaults=include_defaults)
        unknown = names - set(manager.all_tasks)
        if not unknown:
            return manager
    raise UserError(
        f"--harness_tasks: no task {', '.join(sorted(unknown))} in {folder} or in the harness"
    )


def _metrics(values: dict, suffix: str) -> dict[str, float]:
    """Metrics of a task under plain names; the harness has "acc,none" and "acc_stderr,none"."""
    named = {key.split(",")[0]: value for key, value in values.items() if "," in key}
    return {
        name.removesuffix("_stderr"): value
        for name, value in named.items()
        if name.endswith("_stderr") == bool(suffix) and isinstance(value, int | float)
    }


def _check_plain(requests: list[Instance], *names: str) -> None:
    """Refuses special tokens in the arguments that `names` name, from the first on.

    A task and the number of its item say where: the harness knows no files and lines.
    """
    for request in requests:
        where = f"harness: {request.task_name or 'task'}, item {request.doc_id}"
        for name, text in zip(names, request.args, strict=False):
            check_plain(where, name, text)


def _arguments(requests: list[Instance]) -> list[tuple]:
    return [request.args for request in requests]


def _split(prompt: str, text: str) -> tuple[str, str]:
    """Moves white space at the end of a prompt to its continuation."""
    stripped = prompt.rstrip()
    return stripped, prompt[len(stripped) :] + text


def _until(text: str, options: dict) -> str:
    stops = options.get("until") or []
    for stop in [stops] if isinstance(stops, str) else stops:
        text = text.split(stop)[0] if stop else text
    return text
