"""The model card: what the model is, how it loads, what it owes, and how far to trust it."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import huggingface_hub

from glm_jax.errors import UserError
from glm_jax.hub.model_files import Release, package_file

_OURS = """\
```python
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
model = AutoModelForSeq2SeqLM.from_pretrained(folder, trust_remote_code=True)
for filled in model.fill_blanks(tokenizer, ["Paris is the capital of [MASK].", "北京是[MASK]。"]):
    print(filled.text, filled.answers)
```

`[MASK]` stands for a few words, `[sMASK]` for a sentence, `[gMASK]` for anything. `fill_blanks`
fills several blanks from left to right; `model.generate(**tokenizer(text, return_tensors="pt"))`
fills the first with any decoding strategy of transformers.

**Loading the model runs the Python files in this folder** (`trust_remote_code=True`): transformers
has no class with two-dimensional positions and a context that is read in both directions. They
import torch and transformers only; read them first. The tokenizer needs no code; without
`trust_remote_code=False` transformers asks all the same, because the model has some."""

_NATIVE = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder)
```

The class is part of transformers ({version} or later); no code of this folder runs."""

_PUBLISHED = """\
Tensors and config have the names of the published checkpoints ({layout}). The classes that read
them are remote code, which config.json names; it is loaded with `trust_remote_code=True`.{trap}"""

_GLM_2021_TRAP = """ **Without
it transformers takes `model_type: glm` for its own GLM-4 and builds another model.**"""
# Read in their code, not run: vLLM's and SGLang's lists of models, llama.cpp's conversion.
_SERVERS = (
    "vLLM knows this class, SGLang `glm4` alone; llama.cpp's converter takes a byte-level "
    "vocabulary with `<|endoftext|>` and `<|user|>` only. All of them read a context causally."
)
_SINCE = {"glm": "4.46", "glm4": "4.51"}


def check_licence(release: Release, license_: str, base_model: str) -> None:
    """Refuses to pass a model on without what it owes.

    Raises:
      UserError: the origin's licence or name is not known.
    """
    if release.origin is None:
        return
    for flag, given, found in (
        ("license", license_, release.origin.license),
        ("base_model", base_model, release.origin.base_model),
    ):
        if not (given or found):
            raise UserError(
                f"{release.origin.folder / 'README.md'} does not say the {flag} of this model: "
                f"give it with --{flag}, such as "
                + ("--license=apache-2.0" if flag == "license" else "--base_model=THUDM/glm-10b")
            )


def write_model_card(
    release: Release,
    out: Path,
    *,
    license_: str = "",
    base_model: str = "",
    parity: Sequence[tuple[str, str, str, str]] = (),
) -> None:
    """Writes README.md, and copies the licence and notice files of the origin beside it.

    Args:
      parity: rows of the table of comparisons, see `verification`.
    """
    for path in release.origin.notices if release.origin else ():
        shutil.copyfile(path, out / path.name)
    text = package_file("model_card.md").decode()
    card = text.format(
        metadata=_metadata(release, license_, base_model),
        title="GLM blank infilling model",
        introduction=_introduction(release),
        usage=_usage(release),
        faithful=faithfulness(release),
        facts="\n".join(f"| {name} | {value} |" for name, value in _facts(release)),
        origin=_origin(release, license_, base_model),
        parity=_parity(parity),
    )
    (out / "README.md").write_text(card.rstrip() + "\n", encoding="utf-8")


def faithfulness(release: Release) -> str:
    """What other programs compute of this model, in words."""
    config, serves = release.config, release.layout.serves
    lines = []
    if release.layout.name == "glm_jax":
        lines.append(
            "Serving engines for causal models do not compute this model faithfully."
            if config.context == "bidirectional" or config.position == "rope_2d"
            else "Its context is causal; the layouts `glm` and `glm4` need no code of this folder."
        )
    for field, served in serves.items():
        trained = getattr(config, field)
        if trained != served:
            lines.append(_DIFFERENCES[field].format(trained=trained, served=served))
    if release.layout.name == "glm_130b":
        lines.append("No released class reads this layout in a folder of its own.")
    if release.layout.name == "glm_2021":
        lines.append("Load it with trust_remote_code=True: see above what happens without.")
    if not lines:
        lines.append("The classes and servers that read this layout compute the trained function.")
    if release.layout.name in _SINCE:
        lines.append(_SERVERS)
    return "\n".join(f"- {line}" for line in lines)


_DIFFERENCES = {
    "activation": "**Not faithful:** trained with {trained}; the published class of this layout "
    "computes {served}, which moves logits slightly.",
    "context": "**Not faithful:** trained with a {trained} context; classes and servers of this "
    "layout read it {served}ly (transformers takes a 4-D mask in `forward`, not in `generate`).",
    "span_position": "**Not faithful:** trained with answers at the position of their `{trained}`; "
    "classes and servers of this layout count on (`{served}`).",
}


def _introduction(release: Release) -> str:
    how = "pretrained by autoregressive blank infilling with glm_jax and exported to PyTorch"
    if release.origin is None:
        return f"A bilingual (English, Chinese) GLM {how}."
    return "Converted by glm_jax from the model below, or trained on from it."


def _usage(release: Release) -> str:
    if release.layout.name == "glm_jax":
        return _OURS
    if release.layout.name in ("glm", "glm4"):
        return _NATIVE.format(version=_SINCE[release.layout.name])
    trap = _GLM_2021_TRAP if release.layout.name == "glm_2021" else ""
    return _PUBLISHED.format(layout=release.layout.name, trap=trap)


def _facts(release: Release) -> list[tuple[str, str]]:
    config, tokenizer = release.config, release.tokenizer
    facts = [
        ("layout", release.layout.name),
        ("layers, width", f"{config.num_layers}, {config.hidden_dim}"),
        ("heads, key heads", f"{config.num_heads}, {config.kv_heads}"),
        ("positions", f"{config.position}, up to {config.max_positions}"),
        ("context", config.context),
        ("residual, norm", f"{config.residual}, {config.norm}"),
        ("activation", config.activation),
        ("weights", f"{release.dtype}; digests in sha256sums.txt"),
    ]
    if tokenizer is None:
        return [*facts, ("vocabulary", f"{config.vocab_size} embedding rows")]
    rows = f"{tokenizer.vocab_size} tokens; {config.vocab_size} embedding rows, the rest is padding"
    return [*facts, ("vocabulary", rows), ("tokenizer sha256", tokenizer.fingerprint)]


def _origin(release: Release, license_: str, base_model: str) -> str:
    if release.origin is None:
        return ""
    notices = ", ".join(path.name for path in release.origin.notices) or "none found"
    return (
        f"\n## Origin\n\nBase model: {base_model or release.origin.base_model}. "
        f"Licence: {license_ or release.origin.license}. "
        f"Licence and notice files carried over: {notices}.\n"
    )


def _parity(rows: Sequence[tuple[str, str, str, str]]) -> str:
    if not rows:
        return "\nThe export was not verified (`--verify`).\n"
    header = "| compared | largest difference | same choice | |\n|---|---|---|---|\n"
    return "\n## Parity with JAX\n\n" + header + "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _metadata(release: Release, license_: str, base_model: str) -> str:
    origin = release.origin
    known = {
        "license": license_ or (origin.license if origin else ""),
        "license_name": "" if license_ else (origin.license_name if origin else ""),
        "license_link": "" if license_ else (origin.license_link if origin else ""),
        "base_model": base_model or (origin.base_model if origin else ""),
    }
    data = huggingface_hub.ModelCardData(
        language=["en", "zh"],
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["glm", "blank-infilling"]
        + (["custom_code"] if release.layout.name not in ("glm", "glm4") else []),
        **{key: value for key, value in known.items() if value},
    )
    return data.to_yaml()
