"""Which of the two languages a text is in."""

import re

LANGUAGES = ("en", "zh")

_HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af]+")
_LETTERS = re.compile(r"[^\W\d_]+")

# First bytes of characters in UTF-8: E5 to E9 are U+5000 to U+9FFF, E3 U+3000 to U+3FFF, EF from
# U+F000 and F0 from U+10000. The other bytes, to be left out of a count.
_NOT_CERTAINLY_HAN = bytes(set(range(256)) - set(range(0xE5, 0xEA)))
_NOT_POSSIBLY_HAN = bytes(set(range(256)) - {*range(0xE3, 0xEA), 0xEF, 0xF0})

# A Chinese character says about as much as three to four Latin letters, so text of which a fifth
# of the letters are Chinese carries about half of its content in Chinese.
_MIN_HAN_SHARE = 0.2


def detect_language(text: str) -> str:
    """Returns 'zh' if at least a fifth of the letters of `text` are Han characters, else 'en'.

    Text without letters is 'en'.
    """
    if text.isascii():
        return "en"
    # Counting characters is slow, and most texts are clear from their bytes.
    encoded = text.encode("utf-8", "surrogatepass")
    if len(encoded.translate(None, _NOT_CERTAINLY_HAN)) >= _MIN_HAN_SHARE * len(text):
        return "zh"
    if not encoded.translate(None, _NOT_POSSIBLY_HAN):
        return "en"
    han = _count(_HAN, text)
    if han == 0:
        return "en"
    return "zh" if han >= _MIN_HAN_SHARE * _count(_LETTERS, text) else "en"


def _count(runs: re.Pattern, text: str) -> int:
    """Characters of `text` in the runs of a kind."""
    return sum(map(len, runs.findall(text)))
