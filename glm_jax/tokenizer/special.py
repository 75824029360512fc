"""The special tokens of GLM: what they are for, and their ids in our own vocabularies."""

import dataclasses
import re


@dataclasses.dataclass(frozen=True)
class SpecialTokens:
    """Ids of the control symbols of GLM. They are never produced from text, only inserted by id.

    None is a symbol that a family does not have. Two may share an id: `pad` is `eos` in GPT-2, BERT
    and GLM-4, and without task masks `smask` and `gmask` are `mask`.
    """

    pad: int = 0
    unk: int | None = 1
    eos: int = 2  # end of a document
    cls: int | None = 3  # [CLS], first token of a document (GLM's ENC)
    mask: int = 4  # [MASK], a token blank
    smask: int = 5  # [sMASK], a sentence blank
    gmask: int = 6  # [gMASK], a document blank
    sop: int = 7  # <sop>, first input of a span
    eop: int = 8  # <eop>, last target of a span
    dblock: int | None = 9  # [dBLOCK], block noise

    @property
    def start(self) -> tuple[int, ...]:
        """What a document begins with: [CLS], or nothing in a family without it."""
        return () if self.cls is None else (self.cls,)


# The first pieces of every vocabulary of ours, by id: the fields of SpecialTokens, then reserved.
SPECIAL_PIECES = (
    "<pad>",
    "<unk>",
    "</s>",
    "[CLS]",
    "[MASK]",
    "[sMASK]",
    "[gMASK]",
    "<sop>",
    "<eop>",
    "[dBLOCK]",
    *(f"[unused{i}]" for i in range(6)),
)

# A blank in a text, and the white space on its left: an answer brings its own.
BLANK = re.compile(r"\s*(\[MASK\]|\[sMASK\]|\[gMASK\])")
