"""Texts with blanks that are filled at every validation (`logging.samples`)."""

from glm_jax.config import Config
from glm_jax.errors import UserError
from glm_jax.model.decoding import DecodingOptions, Filler, encode_context
from glm_jax.parallel.sharding import Sharding
from glm_jax.stages import longest_row
from glm_jax.tokenizer import Tokenizer


def check_samples(config: Config, tokenizer: Tokenizer) -> None:
    """Refuses `logging.samples` that cannot be filled.

    Raises:
      UserError: a text without a blank, or longer than the row together with its answer.
    """
    for text in config.logging.samples:
        try:
            length = len(encode_context(text, tokenizer).tokens)
        except UserError as error:
            raise UserError(f"config.logging.samples: {error}") from error
        longest = max(length, config.logging.sample_tokens)
        if longest > longest_row(config):
            raise UserError(
                f"config.logging.samples: {text[:60]!r} or logging.sample_tokens needs {longest} "
                f"slots, the longest row has {longest_row(config)}"
            )


def fill_samples(
    config: Config, params: dict, tokenizer: Tokenizer, sharding: Sharding
) -> list[list[str]]:
    """Each text in parts, answers at odd places; the error alone where it cannot be filled."""
    filler = Filler(config.model, params, tokenizer, sharding)
    options = DecodingOptions(max_new_tokens=config.logging.sample_tokens)
    filled = filler.try_fill(config.logging.samples, options)
    return [[str(x)] if isinstance(x, UserError) else x.parts for x in filled]
