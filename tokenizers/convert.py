"""Takes the tokenizer of a released checkpoint over, with its ids.

    python tokenizers/convert.py --from=HUB_FOLDER --out=tokenizer

HUB_FOLDER holds the tokenizer files of a checkpoint of GLM, Chinese GLM, ChatGLM-6B, ChatGLM2/3 or
GLM-4. The family is seen from the files; `--family` names it. Nothing is downloaded, and no code
of the folder runs. See README.md here for the families and what they need.
"""

from pathlib import Path

from absl import flags

from glm_jax import cli
from glm_jax.errors import UserError
from glm_jax.tokenizer import families
from glm_jax.tokenizer.imported import ImportedTokenizer, save_imported

FLAGS = flags.FLAGS


def define_flags() -> None:
    flags.DEFINE_string("from", None, "Folder with the tokenizer files of a checkpoint.")
    flags.DEFINE_string("out", None, "Folder to write; it must not exist.")
    flags.DEFINE_enum(
        "family", None, list(families.FAMILIES), "Family of the checkpoint; else seen from files."
    )
    flags.mark_flags_as_required(["from", "out"])


def main() -> None:
    folder = Path(FLAGS["from"].value)
    if not folder.is_dir():
        raise UserError(f"--from={folder} is no folder")
    family = FLAGS.family or families.detect(folder)
    print(f"family {family}")
    model, info = families.read(folder, family)
    report(save_imported(FLAGS.out, model, info))


def report(tokenizer: ImportedTokenizer) -> None:
    for name, index in tokenizer.info.special_tokens.items():
        print(f"{name:6} {'none' if index is None else index}")
    print(
        f"wrote {tokenizer.dir}: {tokenizer.vocab_size} pieces, "
        f"fingerprint {tokenizer.fingerprint[:16]}"
    )


if __name__ == "__main__":
    cli.run(main, define_flags)
