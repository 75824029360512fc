"""The white-space symbols of icetk and ChatGLM-6B, pieces of their SentencePiece model."""

import re

LINE_FEED = "<n>"
TAB = "<|tab|>"
LONGEST_BLANK = 80
_SPACES = re.compile(f" {{2,{LONGEST_BLANK}}}")
_BLANK = re.compile(r"<\|blank_(\d+)\|>")


def blank(length: int) -> str:
    """The piece of a run of `length` spaces, 2 to LONGEST_BLANK."""
    return f"<|blank_{length}|>"


def symbols(text: str) -> str:
    """`text` with symbols for its white space (`SPTokenizer._preprocess`, ChatGLM-6B)."""
    text = text.replace("\n", LINE_FEED).replace("\t", TAB)
    return _SPACES.sub(lambda run: blank(len(run[0])), text)


def spelled(text: str) -> str:
    """`text` with the white space that its symbols stand for."""
    text = text.replace(LINE_FEED, "\n").replace(TAB, "\t")
    return _BLANK.sub(lambda symbol: " " * int(symbol[1]), text)
