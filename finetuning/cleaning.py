"""Lyrics without what scrapers and editors left in them. Line breaks, accents, case and punctuation stay."""

import re
import unicodedata
from collections import Counter

from finetuning.corpus import END_OF_TEXT, Song

# What lyric sites leave behind, as (what the report calls it, pattern, what takes its place).
_LEFT_BY_SITES: list[tuple[str, re.Pattern[str], str]] = [
    ("'You might also like'", re.compile(r"^[ \t]*You might also like(?=[ \t]*$|[A-ZÁÉÍÓÚÑ¡¿\[(])", re.MULTILINE), ""),
    ("'You might also like'", re.compile(r"You might also like(?=[ \t]*(?:\d*Embed)?\s*\Z)"), ""),
    ("'12Embed'", re.compile(r"[ \t]*(?:\d+(?:[.,]\d+)?K?)?Embed\s*\Z"), ""),
    ("'3 Contributors ... Lyrics'", re.compile(r"\A\s*\d+ Contributors?[^\n]*?Lyrics"), ""),
    ("'See ... Live ... Get tickets'", re.compile(r"^See .{1,80} Live\s?Get tickets as low as \$\d+", re.MULTILINE), ""),
]
_END_OF_TEXT = re.compile(re.escape(END_OF_TEXT))  # a tokenizer would take it for the end of the song
_SECTION_MARK = re.compile(r"^[ \t]*\[[^\]\n]{1,80}\][ \t]*\n?", re.MULTILINE)
_INVISIBLE = re.compile("[\u200b\u200c\u200d\u2060\ufeff\u00ad]")
_ODD_BLANKS = re.compile("[\u00a0\u2000-\u200a\u202f\u205f\u3000]")
_LINE_ENDS = re.compile("\r\n?|\u2028|\u2029|\u0085|\v|\f")
_TRAILING_BLANKS = re.compile(r"[ \t]+$", re.MULTILINE)
_MANY_EMPTY_LINES = re.compile(r"\n{3,}")


def clean(song: Song, remove_section_marks: bool, counts: Counter[str]) -> Song:
    """The song in NFC, with plain line ends and blanks, without the traces of lyric sites.

    `counts` is told how many songs each kind of cleaning changed.
    """
    lyrics = _well_formed(song.lyrics)
    counts["half characters"] += lyrics != song.lyrics

    def replace(what: str, pattern: re.Pattern[str], by: str) -> None:
        nonlocal lyrics
        lyrics, times = pattern.subn(by, lyrics)
        counts[what] += times > 0

    composed = unicodedata.normalize("NFC", lyrics)
    counts["not in Unicode's NFC"] += composed != lyrics
    lyrics = composed
    replace("marks of the end of a text", _END_OF_TEXT, "")
    replace("line ends other than LF", _LINE_ENDS, "\n")
    replace("invisible characters", _INVISIBLE, "")
    replace("odd blanks", _ODD_BLANKS, " ")
    for what, pattern, by in _LEFT_BY_SITES:
        replace(what, pattern, by)
    if remove_section_marks:
        replace("section marks", _SECTION_MARK, "")
    replace("trailing blanks", _TRAILING_BLANKS, "")
    replace("more than one empty line", _MANY_EMPTY_LINES, "\n\n")
    return Song(
        title=_one_line(song.title),
        artist=_one_line(song.artist),
        feelings=tuple(_one_line(feeling) for feeling in song.feelings),
        lyrics=lyrics.strip("\n"),
    )


def _one_line(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", _END_OF_TEXT.sub("", _well_formed(text))).split())


def _well_formed(text: str) -> str:
    """The text with its surrogates paired, and with U+FFFD for a lone one, as scraped JSON has them and UTF-8 can't."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
