"""What decides the content of a dataset beside its inputs and its tokenizer."""

import dataclasses

from glm_jax.decontamination import DEFAULT_NGRAM


@dataclasses.dataclass(frozen=True)
class Options:
    """What the flags of the same names say; written into the manifest."""

    language: str = "auto"
    source: str = ""  # empty: a source is named by the language of its documents
    validation_share: float = 0.02
    seed: int = 0
    on_error: str = "fail"
    dedup: bool = False
    num_shards: int = 0  # of the training split of a source; 0: by the size of the inputs
    decontaminate: tuple[str, ...] = ()  # evaluation files
    decontaminate_ngram: int = DEFAULT_NGRAM
