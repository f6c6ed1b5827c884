"""Every format gives the same songs; a broken file is named with its line; reading holds one song at a time."""

import csv
import json
import tracemalloc
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from finetuning.corpus import FieldNames, Song, find_sources, read_songs, read_split_file
from finetuning.errors import UserError

SONGS = [
    Song("Canción del ñandú", "Los Ñires", ("alegría", "confianza"), "¡Qué sí!\nCorre, corre\n\n¿dónde va?"),
    Song("Título: raro", "", (), 'dice "hola", y\nse va'),
    Song("", "Anónimo", ("pena",), "una línea"),
]


def records() -> list[dict]:
    return [json.loads(song.to_json_line()) for song in SONGS]


def write(path: Path) -> Path:
    """The songs in the format of the path's ending."""
    if path.suffix == ".json":
        path.write_text(json.dumps(records(), indent=1, ensure_ascii=False), encoding="utf-8")
    elif path.suffix == ".jsonl":
        path.write_text("".join(song.to_json_line() for song in SONGS), encoding="utf-8")
    elif path.suffix in (".csv", ".tsv"):
        with open(path, "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, delimiter="," if path.suffix == ".csv" else "\t")
            writer.writerow(["title", "artist", "feelings", "lyrics"])
            writer.writerows([song.title, song.artist, ", ".join(song.feelings), song.lyrics] for song in SONGS)
    elif path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records()), path)
    else:
        path.write_text("".join(tagged(song) for song in SONGS), encoding="utf-8")
    return path


def tagged(song: Song) -> str:
    feelings = f"Sentimientos: {', '.join(song.feelings)}\n" if song.feelings else ""
    return f"Título: {song.title}\nArtista: {song.artist}\n{feelings}{song.lyrics}<|endoftext|>\n"


def read(path: Path, **names: str) -> list[Song]:
    return [song for song, _ in read_songs(path, FieldNames(**names))]


@pytest.mark.parametrize("ending", ["json", "jsonl", "csv", "tsv", "parquet", "txt"])
def test_every_format_gives_the_same_songs(tmp_path, ending):
    assert read(write(tmp_path / f"songs.{ending}")) == SONGS


@pytest.mark.parametrize("ending", ["json", "jsonl", "csv", "txt"])
def test_a_byte_order_mark_is_not_part_of_the_first_song(tmp_path, ending):
    path = write(tmp_path / f"songs.{ending}")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read(path) == SONGS


def test_positions_rise_to_the_size_of_the_file(tmp_path):
    path = write(tmp_path / "songs.jsonl")
    positions = [position for _, position in read_songs(path, FieldNames())]
    assert positions == sorted(positions)
    assert positions[-1] == path.stat().st_size


def test_jsonl_in_a_file_called_json(tmp_path):
    path = tmp_path / "songs.json"
    path.write_bytes(write(tmp_path / "songs.jsonl").read_bytes())
    assert read(path) == SONGS


def test_field_names_can_be_chosen(tmp_path):
    path = tmp_path / "poems.jsonl"
    path.write_text('{"name": "A", "author": "B", "text": "c\\nd", "mood": "alegría; amor"}\n', encoding="utf-8")
    songs = read(path, title="name", artist="author", lyrics="text", feelings="mood")
    assert songs == [Song("A", "B", ("alegría", "amor"), "c\nd")]


@pytest.mark.parametrize("feelings", ['["alegría", "amor"]', "['alegría', 'amor']", "alegría | amor", " alegría,amor "])
def test_feelings_in_a_csv_come_in_many_forms(tmp_path, feelings):
    path = tmp_path / "songs.csv"
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["lyrics", "feelings"], ["la", feelings]])
    assert read(path)[0].feelings == ("alegría", "amor")


def test_tagged_text_whose_lyrics_hold_a_tag_and_blank_lines(tmp_path):
    path = tmp_path / "songs.txt"
    one = "\n\nTITULO: Uno\nartista:Ana\n\nverso\nTítulo: no es un título\n\nfin\n<|endoftext|>"
    path.write_text(one + "Título: Dos\nletra <|endoftext|>", encoding="utf-8")
    one, two = read(path)
    assert (one.title, one.artist, one.feelings) == ("Uno", "Ana", ())
    assert one.lyrics == "verso\nTítulo: no es un título\n\nfin"
    assert (two.title, two.lyrics) == ("Dos", "letra ")


def test_tagged_text_whose_last_song_has_no_end_mark_keeps_it(tmp_path):
    path = tmp_path / "songs.txt"
    path.write_text("Título: Uno\na<|endoftext|>\nTítulo: Dos\nb\n", encoding="utf-8")
    assert [song.title for song in read(path)] == ["Uno", "Dos"]


def broken_line_37(path: Path) -> Path:
    good = SONGS[0].to_json_line()
    path.write_text(good * 36 + '{"lyrics": "la\n' + good, encoding="utf-8")
    return path


def latin_1(path: Path) -> Path:
    path.write_bytes(write(path).read_bytes().decode("utf-8").encode("latin-1"))
    return path


BROKEN = {
    "broken JSON": (lambda folder: broken_line_37(folder / "songs.jsonl"), "line 37 is not valid JSON"),
    "latin-1 JSONL": (lambda folder: latin_1(folder / "songs.jsonl"), "line 1 is not UTF-8"),
    "latin-1 JSON": (lambda folder: latin_1(folder / "songs.json"), "line 3 is not UTF-8"),
    "latin-1 CSV": (lambda folder: latin_1(folder / "songs.csv"), "line 2 is not UTF-8"),
    "latin-1 tagged": (lambda folder: latin_1(folder / "songs.txt"), "line 1 is not UTF-8"),
    "no lyrics column": (lambda folder: text(folder / "songs.csv", "title,letra\na,b\n"), "--lyrics_field"),
    "a list in JSONL": (lambda folder: text(folder / "songs.jsonl", "[1, 2]\n"), "record 1 is not an object"),
    "lyrics as a number": (lambda folder: text(folder / "songs.jsonl", '{"lyrics": 5}\n'), "is not text"),
    "half a JSON array": (lambda folder: text(folder / "songs.json", '[{"lyrics": "a"},'), "not a valid JSON array"),
    "no end mark": (lambda folder: text(folder / "songs.txt", "Título: a\nb\n"), "no <|endoftext|>"),
    "not Parquet": (lambda folder: text(folder / "songs.parquet", "PAR?"), "not a Parquet file"),
    "too many columns": (lambda folder: text(folder / "songs.csv", "title,lyrics\na,b,c\n"), "more columns"),
    "an empty array": (lambda folder: text(folder / "songs.json", "[]"), "no songs"),
    "only a header": (lambda folder: text(folder / "songs.csv", "title,lyrics\n"), "no songs"),
}


def text(path: Path, content: str) -> Path:
    path.write_text(content, encoding="utf-8")
    return path


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_file_is_one_line_that_names_it(tmp_path, kind):
    make, expected = BROKEN[kind]
    path = make(tmp_path)
    with pytest.raises(UserError) as error:
        read(path)
    assert len(error.value.lines) == 1
    assert str(path) in error.value.lines[0]
    assert expected in error.value.lines[0]


def test_sources_that_cannot_be_read_are_reported_together(tmp_path):
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "notes.docx").write_text("x")
    (tmp_path / "folder").mkdir()
    paths = [tmp_path / name for name in ("empty.jsonl", "notes.docx", "folder", "missing.csv")]
    with pytest.raises(UserError) as error:
        find_sources(paths, tmp_path / "splits")
    assert len(error.value.lines) == 4


def test_a_spreadsheets_csv_with_semicolons(tmp_path):
    path = tmp_path / "songs.csv"
    path.write_text('title;lyrics\nUno;"a, b; c"\n', encoding="utf-8")
    assert read(path) == [Song("Uno", "", (), "a, b; c")]


def test_lyrics_as_a_list_of_lines(tmp_path):
    path = text(tmp_path / "songs.jsonl", '{"lyrics": ["uno", "dos"]}\n')
    assert read(path)[0].lyrics == "uno\ndos"


def test_what_an_earlier_split_wrote_is_no_source(tmp_path):
    write(tmp_path / "a.jsonl")
    (tmp_path / "splits").mkdir()
    write(tmp_path / "splits" / "manifest.json")
    assert find_sources([tmp_path], tmp_path / "splits") == [tmp_path / "a.jsonl"]


def test_a_folder_gives_its_files_in_order_of_name(tmp_path):
    for name in ("b.jsonl", "a.csv", "sub/c.txt", "readme.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / name) if not name.endswith("md") else (tmp_path / name).write_text("x")
    found = find_sources([tmp_path], tmp_path / "sub2")
    assert [path.name for path in found] == ["a.csv", "b.jsonl", "c.txt"]


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "txt"])
def test_reading_holds_one_song_at_a_time(tmp_path, ending):
    lyrics = "una línea más\n" * 3000
    songs = [Song(f"t{i}", "a", (), lyrics) for i in range(300)]  # 13 MB
    path = tmp_path / f"songs.{ending}"
    if ending == "json":
        path.write_text(json.dumps([json.loads(song.to_json_line()) for song in songs]), encoding="utf-8")
    elif ending == "csv":
        with open(path, "w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([["lyrics"], *([song.lyrics] for song in songs)])
    else:
        path.write_text("".join(song.to_json_line() if ending == "jsonl" else tagged(song) for song in songs), "utf-8")
    del songs
    tracemalloc.start()
    count = sum(1 for _ in read_songs(path, FieldNames()))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 300
    assert peak < 2_500_000


def test_a_split_file_that_is_missing_says_how_to_make_it(tmp_path):
    with pytest.raises(UserError, match=r"split_data\.py"):
        read_split_file(tmp_path / "train.jsonl")
