"""Estimate: about how many tokens a text is, without a tokenizer, by kinds of bytes.

What always holds: it is an estimate and no bound, meant to be a little too high. One token a byte is the bound, since a
token of a vocabulary that is made of bytes stands for one at least. The text is read by `bytes.translate`, in C.

Held against OpenAI's o200k and cl100k it is not under for prose, code, JSON, CSV and logs in English, Chinese, Spanish,
Hindi, Arabic, French, Portuguese, Russian, Japanese and German. It is under by more than a tenth for:

* words of random letters and chemical formulas (0.6 to 0.7 of the truth), control characters, rows of indented lines
  of a few signs each, accents that are signs of their own (0.65 to 0.8);
* Tifinagh, Coptic, Glagolitic, Vai, Bamum, Javanese, Yi, braille, and scripts beyond the basic plane, as cuneiform
  (0.65 to 0.75);
* with cl100k alone: Odia, and signs in no word: rare Chinese, Hangul, rare Latin and Cyrillic letters, mathematics,
  arrows (0.75 to 0.9).
"""

from __future__ import annotations

import functools
from typing import NamedTuple

from token_budget.metering._names import MAX_NAME

_LETTERS = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_DIGITS = b"0123456789"
_BLANKS = b" \t\r\n"
_ASCII_LEFT = bytes(set(range(128)) - {*_LETTERS, *_DIGITS, *_BLANKS})
_INDIC = b"\xe0"  # the first byte of a sign: Indic, Thai, Lao, Tibetan
_DENSE = b"\xe1\xd4\xd5\xd6\xdc\xdd\xde\xdf\xc9\xca"  # Ethiopic, Khmer, Georgian; Armenian; Syriac to N'Ko; phonetic
_ALIKE = bytes(0x20 if byte in _BLANKS else 0x30 if byte in _DIGITS else byte for byte in range(256))
_SEPARATE = 8000  # characters from which long texts are judged one by one: base64 does not hide behind prose

# hundredths of a token
_LETTER, _DENSE_LETTER, _PUNCTUATION, _BLANK, _LINE, _HIGH = 40, 75, 65, 5, 40, 70
_APART = 80  # a number after a blank: it is no part of a word, so the blank is a token of its own
_INDIC_MORE, _DENSE_MORE = 30, 80  # beside what each byte above 127 counts
_WORDLESS = 20  # letters to a blank from which a text has no words: hex, base64, minified

_ONE_BY_ONE = (
    "mistral",
    "mixtral",
    "codestral",
    "ministral",
    "pixtral",
    "magistral",
    "devstral",
    "gemini",
    "gemma",
    "grok",
)


class Weights(NamedTuple):
    """What the vocabulary of a model makes of a text."""

    digit: int  # hundredths of a token for a digit
    percent: int  # of what the bytes say


def weights(model: str | None) -> Weights:
    """Return what is known of a model's vocabulary, by its name."""
    return _weights((model or "")[:MAX_NAME])


@functools.lru_cache(maxsize=256)
def _weights(model: str) -> Weights:
    name = model.lower()
    digit = 100 if any(family in name for family in _ONE_BY_ONE) else 75
    return Weights(digit, 130 if "claude" in name else 100)


def text_tokens(text: str | bytes, model: str | None = None) -> int:
    """Return about how many tokens a text is to a model, rounded up."""
    data = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    digit, percent = weights(model)
    return -(-_hundredths(data, digit) * percent // 10_000)


def pieces_tokens(pieces: list[str], model: str | None = None) -> int:
    """Return about how many tokens the strings and keys of a body are; what stands between them in JSON counts too."""
    digit, percent = weights(model)
    text = '":'.join(pieces)
    if len(text) <= _SEPARATE:
        return -(-_hundredths(text.encode("utf-8", "surrogatepass"), digit) * percent // 10_000)
    long = [piece for piece in pieces if len(piece) > _SEPARATE // 4]
    rest = '":'.join([piece for piece in pieces if len(piece) <= _SEPARATE // 4])
    hundredths = sum(_hundredths(one.encode("utf-8", "surrogatepass"), digit) for one in [rest, *long])
    return -(-hundredths * percent // 10_000)


def _hundredths(data: bytes, digit: int) -> int:
    """Return the hundredths of a token that the bytes of a text are."""
    wordless = data.translate(None, _LETTERS)
    letters = len(data) - len(wordless)
    size = len(wordless)
    rest = wordless.translate(None, _BLANKS)
    blanks = size - len(rest)
    size = len(rest)
    rest = rest.translate(None, _DIGITS)
    digits = size - len(rest)
    high = rest.translate(None, _ASCII_LEFT)
    punctuation = len(rest) - len(high)
    letter = _LETTER if letters <= _WORDLESS * blanks else _DENSE_LETTER
    total = letters * letter + digits * digit + punctuation * _PUNCTUATION + blanks * _BLANK + len(high) * _HIGH
    total += wordless.count(b"\n") * _LINE
    if digits:
        total += wordless.translate(_ALIKE).count(b" 0") * _APART
    if high:
        total += high.count(_INDIC) * _INDIC_MORE + (len(high) - len(high.translate(None, _DENSE))) * _DENSE_MORE
    return total
