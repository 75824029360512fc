"""Whether a finished dataset is what was written, without training on it."""

import json

from etils import epath

from glm_jax.data.shards import SPLITS, TOKENIZER_DIR
from glm_jax.data.sources import TokenStream
from glm_jax.errors import UserError
from glm_jax.preparation.work import MANIFEST_FILE
from glm_jax.tokenizer import Tokenizer


def verify_dataset(directory: str) -> str:
    """Hashes every shard of a folder that `prepare` wrote; says how many there are.

    Raises:
      UserError: no such folder, or the first file that is missing or was changed.
    """
    path = epath.Path(directory) / MANIFEST_FILE
    try:
        manifest = json.loads(path.read_text())
        sources = manifest["sources"]
        tokenizer = manifest["tokenizer"]
    except (ImportError, KeyError, OSError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not the manifest of a dataset ({error})") from error
    tokens = shards = 0
    for name, metadata in sorted(sources.items()):
        for split in SPLITS:
            stream = TokenStream(str(epath.Path(directory) / name), name, split)
            written = metadata["splits"][split]
            if stream.digest != written["digest"]:
                raise UserError(
                    f"{epath.Path(directory) / name}: metadata.json lists other shards of {split} "
                    f"than {path}"
                )
            tokens += stream.length
            shards += written["shards"]
    if Tokenizer.load(epath.Path(directory) / TOKENIZER_DIR).fingerprint != tokenizer:
        raise UserError(f"{directory}/{TOKENIZER_DIR}: not the tokenizer {tokenizer} of {path}")
    return f"{directory}: {shards} shards of {len(sources)} sources, {tokens:,} tokens, unchanged"
