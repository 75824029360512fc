"""The steps of `quickstart.sh`, each a command a user could type.

Finished steps are not repeated: run it again to go on where it stopped.
"""

import argparse
import gzip
import importlib.metadata
import importlib.util
import json
import platform
import resource
import shlex
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("glm-jax", "jax", "flax", "optax", "orbax-checkpoint", "sentencepiece", "numpy")


def main() -> None:
    options = _parse_arguments()
    work = options.workdir.absolute()
    work.mkdir(parents=True, exist_ok=True)
    _check_same_inputs(work, options.corpus)
    started = time.time()
    corpus = options.corpus or make_almanac(work)
    train_tokenizer(work, corpus, options.vocab_size)
    prepare(work, corpus)
    train(work, bool(options.corpus))
    samples = fill_samples(work, corpus if options.corpus else [])
    exact_match = None if options.corpus else fill_heldout(work)
    verified = export(work)
    write_summary(work, samples, exact_match, verified, time.time() - started)


if __name__ == "__main__":
    main()
