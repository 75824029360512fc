"""Released weights all the way in and out. Opt-in: it downloads from the hub; nobody has run it.

    python tests/real_checkpoints.py                        # all of them, smallest first
    python tests/real_checkpoints.py THUDM/glm-large-chinese

For each: the tokenizer is converted, the folder is exported to our layout and compared with JAX
logit by logit, and written back in its own layout, where every tensor must be what was downloaded.
ChatGLM2 and later also leave as the native class of transformers. Needs three times the size of
the weights in disk, and in memory the float32 parameters twice.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import huggingface_hub

from glm_jax.layouts.folder import open_checkpoint
from glm_jax.layouts.safetensors_files import SafetensorsFiles
from glm_jax.layouts.stored_tensors import FLOATING
from glm_jax.layouts.torch_files import TorchFiles

ROOT = Path(__file__).resolve().parent.parent
REPOSITORIES = (
    "THUDM/glm-large-chinese",
    "THUDM/glm-2b",
    "THUDM/chatglm-6b",
    "THUDM/chatglm2-6b",
    "THUDM/chatglm3-6b",
    "THUDM/glm-4-9b-chat-hf",
    "THUDM/GLM-4-9B-0414",
    "THUDM/glm-10b",
)
NATIVE = {"chatglm2": "glm", "glm": "glm", "glm4": "glm4"}
FILES = ("*.json", "*.safetensors", "*.bin", "*.model", "*.txt", "*.md", "*LICENSE*", "*.jinja")


def main() -> None:
    for repository in sys.argv[1:] or REPOSITORIES:
        print(f"== {repository}", flush=True)
        with tempfile.TemporaryDirectory() as work:
            check(repository, Path(work))


def check(repository: str, work: Path) -> None:
    folder = Path(huggingface_hub.snapshot_download(repository, allow_patterns=list(FILES)))
    checkpoint = open_checkpoint(folder)
    command("tokenizers/convert.py", f"--from={folder}", f"--out={work / 'tokenizer'}")
    flags = ["--license=other", f"--base_model={repository}", f"--tokenizer={work / 'tokenizer'}"]
    if len(checkpoint.dtypes) > 1:
        flags.append("--dtype=float32")  # ChatGLM-6B keeps its norms wider
    for layout in {"glm_jax", NATIVE.get(checkpoint.layout.name, "glm_jax")}:
        export(folder, work / layout, layout, "--verify", *flags)
    back = work / "back"
    export(folder, back, checkpoint.layout.name, *flags)
    compare(folder, back)


def export(folder: Path, out: Path, layout: str, *flags: str) -> None:
    command(
        "-m", "glm_jax.export", f"--from={folder}", f"--out={out}", f"--layout={layout}", *flags
    )


def command(*arguments: str) -> None:
    subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True)


def compare(folder: Path, back: Path) -> None:
    """Every tensor that holds weights is byte for byte what it was."""
    theirs = SafetensorsFiles(folder) if any(folder.glob("*.safetensors")) else TorchFiles(folder)
    ours = SafetensorsFiles(back)
    for name in ours:
        stored = name if name in theirs else f"glm.{name}"
        kept = theirs[stored]
        if kept.dtype.name in FLOATING and kept.dtype != ours[name].dtype:
            kept = kept.astype(ours[name].dtype)  # a few releases mix two dtypes
        if kept.tobytes() != ours[name].tobytes():
            sys.exit(f"{folder}: {name} did not come back")
    print(f"{len(ours)} tensors came back")


if __name__ == "__main__":
    main()
