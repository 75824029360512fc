"""Which of the two languages a text is in."""

import re

LANGUAGES = ("en", "zh")

_HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af]+")
_LETTERS = re.compile(r"[^\W\d_]+")

# A Chinese character says about as much as three to four Latin letters, so text of which a fifth
# of the letters are Chinese carries about half of its content in Chinese.
_MIN_HAN_SHARE = 0.2


def detect_language(text: str) -> str:
    """Returns 'zh' if at least a fifth of the letters of `text` are Han characters, else 'en'.

    Text without letters is 'en'.
    """
    han = 0 if text.isascii() else _count(_HAN, text)
    if han == 0:
        return "en"
    # Counting letters is slow, and most texts are clear without.
    if han >= _MIN_HAN_SHARE * len(text):
        return "zh"
    return "zh" if han >= _MIN_HAN_SHARE * _count(_LETTERS, text) else "en"


def _count(runs: re.Pattern, text: str) -> int:
    """Characters of `text` in the runs of a kind."""
    return sum(map(len, runs.findall(text)))
