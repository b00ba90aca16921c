"""The names of a ZIP's members as text, whatever encoding the program that packed it used.

The standard (PKWARE APPNOTE 6.3.10, appendix D) knows cp437 and, where general purpose bit 11 says so,
UTF-8. In practice names without that bit are UTF-8 or in the code page of the packer's Windows.
"""

import struct
import unicodedata
import zlib
from collections.abc import Callable, Sequence
from typing import TypeAlias

__all__ = ["decode_names", "unicode_path"]

UNICODE_PATH = 0x7075  # of Info-ZIP, APPNOTE 4.6.9
KOREAN = "cp949"
MAX_SAMPLE, MAX_NAME = 10_000, 1000  # bytes that are examined of all names and of one
FREQUENT_CYRILLIC = "оеаинтсрвлкм"  # three of four letters of Russian text
RARE_CYRILLIC = 0.9  # tells cp866 and cp1251 apart, between which letters become other letters
MIN_HANGUL = 4  # fewer are rather hanzi of GBK that have the same bytes

# (character before, character, character after) -> 0 to 1
_Plausibility: TypeAlias = Callable[[str, str, str], float]


def unicode_path(extra: bytes, raw: bytes) -> str | None:
    """Return the name in a member's Info-ZIP Unicode Path extra field, if it has one for its name `raw`."""
    while len(extra) >= 4:
        kind, size = struct.unpack("<HH", extra[:4])
        field, extra = extra[4 : 4 + size], extra[4 + size :]
        if kind == UNICODE_PATH and field[:5] == struct.pack("<BL", 1, zlib.crc32(raw)):
            try:
                return field[5:].decode()
            except UnicodeDecodeError:
                return None
    return None


def decode_names(names: Sequence[bytes]) -> list[str]:
    """Decode names that do not say their encoding; all are taken to be in the same one.

    Chooses the encoding in which the characters beyond ASCII are most plausible: frequent letters of its
    language, in plausible company. UTF-8 comes first, then cp437. Never fails: what cannot be decoded
    becomes U+FFFD.
    """
    sample: list[bytes] = []
    for name in (name[:MAX_NAME] for name in names if not name.isascii()):
        if sum(map(len, sample)) >= MAX_SAMPLE:
            break
        sample.append(name)
    best = max(_ENCODINGS, key=lambda encoding: _plausibility(sample, encoding))  # the first of equals
    return [name.decode(best, errors="replace") for name in names]


def _plausibility(names: Sequence[bytes], encoding: str) -> float:
    """Return the mean plausibility, 0 to 1, of the characters beyond ASCII in an encoding."""
    found = []
    for name in names:
        text = f" {name.decode(encoding, errors='replace')} "
        triples = zip(text, text[1:], text[2:], strict=False)
        found += [_ENCODINGS[encoding](*triple) for triple in triples if not triple[1].isascii()]
    if encoding == KOREAN and len(found) < MIN_HANGUL:
        return 0
    return sum(found) / len(found) if found else 0


def _is_valid(before: str, character: str, after: str) -> float:
    return character != "\ufffd"


def _is_latin(before: str, character: str, after: str) -> float:
    """Return 1 for an accented letter beside a plain one, such as the second of "Röntgen"."""
    is_letter = unicodedata.name(character, "").startswith("LATIN ")
    return is_letter and _is_plain(before + after) and not _has_odd_case(before, character, after)


def _is_cyrillic(before: str, character: str, after: str) -> float:
    """Return 1 for a frequent letter beside others of its kind, and a little less for a rare one."""
    is_letter = unicodedata.name(character, "").startswith("CYRILLIC ")
    is_likely = is_letter and not _is_plain(before + after) and not _has_odd_case(before, character, after)
    return is_likely * (1 if character.lower() in FREQUENT_CYRILLIC else RARE_CYRILLIC)


def _is_plain(characters: str) -> bool:
    return any(c.isascii() and c.isalpha() for c in characters)


def _has_odd_case(before: str, character: str, after: str) -> bool:
    """Return whether a capital stands within a word that is not all capitals."""
    if character.isupper():
        return before.islower() or (before.isupper() and after.islower())
    return after.isupper()


def _is_in_rows(encoding: str, frequent: Sequence[range], rare: Sequence[range] = ()) -> _Plausibility:
    """Return how plausible a character of two bytes is, by its first byte: 1, 0.5 or 0."""

    def weigh(before: str, character: str, after: str) -> float:
        encoded = character.encode(encoding, errors="ignore")
        if len(encoded) != 2:
            return 0
        return max(
            1.0 * any(encoded[0] in row for row in frequent), 0.5 * any(encoded[0] in row for row in rare)
        )

    return weigh


# Encoding -> the plausibility of a character beyond ASCII between two others, the likeliest encoding first.
_ENCODINGS: dict[str, _Plausibility] = {
    "utf-8": _is_valid,
    "cp437": _is_latin,
    "cp1252": _is_latin,
    "cp850": _is_latin,
    "cp852": _is_latin,  # of Central Europe, as is cp1250
    "cp1250": _is_latin,
    "cp857": _is_latin,  # of Turkey
    # Symbols, kana and the kanji of JIS level 1, then those of level 2
    "cp932": _is_in_rows(
        "cp932", [range(0x81, 0x84), range(0x88, 0x98)], [range(0x98, 0xA0), range(0xE0, 0xEB)]
    ),
    "cp866": _is_cyrillic,
    KOREAN: _is_in_rows("euc_kr", [range(0xA1, 0xA4), range(0xB0, 0xC9)]),  # the hangul of KS X 1001
    # Symbols and the hanzi of GB 2312 level 1, then those of level 2
    "gbk": _is_in_rows("gb2312", [range(0xA1, 0xA4), range(0xB0, 0xD8)], [range(0xD8, 0xF8)]),
    # The same of Big5
    "cp950": _is_in_rows("cp950", [range(0xA1, 0xA3), range(0xA4, 0xC7)], [range(0xC9, 0xFA)]),
    "cp1251": _is_cyrillic,  # last, as its capitals are the bytes of many hanzi of GBK
}
