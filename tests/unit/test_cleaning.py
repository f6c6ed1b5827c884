"""Cleaning removes what scrapers leave, and nothing that a lyric is made of."""

import unicodedata
from collections import Counter

import pytest

from finetuning.cleaning import clean
from finetuning.corpus import Song


def cleaned(lyrics: str, remove_section_marks: bool = False) -> str:
    return clean(Song("t", "a", (), lyrics), remove_section_marks, Counter()).lyrics


def test_a_clean_song_stays_as_it_is():
    lyrics = "¡Ay, pingüino!\n  ¿Quién eres tú?\n\n—Soy yo… (yo)\nÑAM, ñam; 12 veces"
    assert cleaned(lyrics) == lyrics


@pytest.mark.parametrize(
    ("dirty", "clean_lyrics"),
    [
        ("uno\r\ndos\rtres", "uno\ndos\ntres"),
        ("uno  \ndos\t\n\n\n\ntres\n", "uno\ndos\n\ntres"),
        ("uno\u00a0dos\u200b", "uno dos"),
        (unicodedata.normalize("NFD", "corazón"), "corazón"),
        ("uno\nYou might also like\ndos", "uno\n\ndos"),
        ("uno\nYou might also like[Coro]\ndos", "uno\n[Coro]\ndos"),
        ("uno\nYou might also like¿Dos?", "uno\n¿Dos?"),
        ("uno\nque respira».You might also like12Embed", "uno\nque respira»."),
        ("uno<|endoftext|> dos", "uno dos"),
        ("uno \ud83d dos", "uno \ufffd dos"),
        ("uno \ud83c\udfb5 dos", "uno 🎵 dos"),
        ("uno\nla última12Embed", "uno\nla última"),
        ("uno\nla última.1.2KEmbed", "uno\nla última."),
        ("uno\nla últimaEmbed", "uno\nla última"),
        ("3 ContributorsLa lluvia Lyricsuno\ndos", "uno\ndos"),
        ("uno\nSee Los Ñires LiveGet tickets as low as $45\ndos", "uno\n\ndos"),
    ],
)
def test_what_goes(dirty, clean_lyrics):
    assert cleaned(dirty) == clean_lyrics


def test_section_marks_go_only_when_asked():
    lyrics = "[Coro]\nuno [dos] tres\n[Verso 2: Ana]\ncuatro"
    assert cleaned(lyrics) == lyrics
    assert cleaned(lyrics, remove_section_marks=True) == "uno [dos] tres\ncuatro"


def test_words_that_only_look_like_leftovers_stay():
    lyrics = "Embed es una palabra\nYou might also like it, pero no\nyo no sé"
    assert cleaned(lyrics) == lyrics
    assert cleaned("canto a 12 voces") == "canto a 12 voces"


def test_it_says_how_often():
    counts: Counter[str] = Counter()
    clean(Song("t", "a", (), "uno  \ndos  \n3Embed"), False, counts)
    clean(Song("t", "a", (), "uno"), False, counts)
    assert counts["'12Embed'"] == 1
    assert counts["trailing blanks"] == 1  # songs, not places


def test_titles_are_one_line():
    song = clean(Song(" El \n río ", "Ana\tRuiz", (" alegría ",), "x"), False, Counter())
    assert (song.title, song.artist, song.feelings) == ("El río", "Ana Ruiz", ("alegría",))
