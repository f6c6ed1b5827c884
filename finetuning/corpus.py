"""Songs, and the files they come in: JSON, JSONL, CSV, TSV, Parquet and tagged text, each read as a stream."""

import csv
import io
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ijson
import pyarrow.parquet

from finetuning.errors import UserError

END_OF_TEXT = "<|endoftext|>"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_TAG = re.compile(r"\s*(t[ií]tulo|artista|sentimientos)\s*:\s*(.*)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Song:
    """A song; what isn't known of it is empty. In `lyrics` a line end ends a line, an empty line a stanza."""

    title: str
    artist: str
    feelings: tuple[str, ...]
    lyrics: str

    def to_json_line(self) -> str:
        """The song as one line of this project's JSONL, line end included."""
        fields = {"title": self.title, "artist": self.artist, "feelings": list(self.feelings), "lyrics": self.lyrics}
        return json.dumps(fields, ensure_ascii=False) + "\n"


@dataclass(frozen=True, slots=True)
class FieldNames:
    """What a source calls a song's fields."""

    title: str = "title"
    artist: str = "artist"
    feelings: str = "feelings"
    lyrics: str = "lyrics"


# A record as its source has it, and how many of the file's bytes were read by then.
Record = dict[str, Any]
Records = Iterator[tuple[Record, int]]


def find_sources(paths: list[Path], output_dir: Path) -> list[Path]:
    """The files to read: files as they are named, folders by the song files in and below them, in order of name.

    What lies in `output_dir`, where an earlier split may stand, is left out of a folder's files.

    Raises:
        UserError: a path doesn't exist, is of an unknown kind, is empty, or a folder holds no song file.
    """
    sources: list[Path] = []
    mistakes: list[str] = []
    kinds = ", ".join(_READERS)
    for path in paths:
        if path.is_dir():
            found = sorted(
                each
                for each in path.rglob("*")
                if each.suffix.lower() in _READERS and each.is_file() and not inside(each, output_dir)
            )
            if not found:
                mistakes.append(f"--input {path}: no song file in this folder; it may hold {kinds}")
            sources += found
        elif not path.exists():
            mistakes.append(f"--input {path}: there is no such file or folder; check the path")
        elif path.suffix.lower() not in _READERS:
            mistakes.append(f"--input {path}: unknown kind of file '{path.suffix}'; convert it to one of {kinds}")
        elif path.stat().st_size == 0:
            mistakes.append(f"--input {path}: the file is empty; name a file with songs")
        else:
            sources.append(path)
    UserError.of_all(mistakes)
    return sources


def inside(path: Path, folder: Path) -> bool:
    """Whether a path lies in a folder, however the two are written."""
    return path.resolve().is_relative_to(folder.resolve())


def read_songs(source: Path, names: FieldNames) -> Iterator[tuple[Song, int]]:
    """The songs of one file in their order, each with the number of the file's bytes read by then.

    Text is as the file has it, not cleaned; a song without lyrics has empty lyrics. Holds one song at a time in memory.

    Raises:
        UserError: the file can't be read as what its name says; the line or record is named.
    """
    tagged = source.suffix.lower() == ".txt"
    number = 0
    for number, (record, position) in enumerate(_READERS[source.suffix.lower()](source), start=1):
        if tagged:
            song = Song(record["title"], record["artist"], _as_feelings(record["feelings"]), record["lyrics"])
        else:
            song = _song_of(record, names, f"{source}: record {number}")
        yield song, position
    if number == 0:
        raise UserError(f"{source}: no songs in this file; name a file with songs")


def read_split_file(path: Path) -> list[Song]:
    """All songs of a file that split_data.py wrote.

    Raises:
        UserError: the file is missing, empty or broken.
    """
    if not path.is_file():
        raise UserError(f"{path}: there is no such file; make it with: python split_data.py --input YOUR_SONGS")
    songs = [song for song, _ in read_songs(path, FieldNames())]
    if empty := [song.title for song in songs if not song.lyrics.strip()]:
        raise UserError(f"{path}: the song {empty[0]!r} has no lyrics; make the split again with split_data.py")
    return songs


def _song_of(record: Any, names: FieldNames, where: str) -> Song:
    if not isinstance(record, dict):
        raise UserError(f'{where} is not an object with named fields; write it as {{"{names.lyrics}": "..."}}')
    if names.lyrics not in record:
        fields = ", ".join(map(str, record)) or "none"
        raise UserError(
            f"{where} has no field '{names.lyrics}' (its fields: {fields}); name the right one by --lyrics_field"
        )
    lyrics = record[names.lyrics]
    if isinstance(lyrics, list) and all(isinstance(line, str) for line in lyrics):
        lyrics = "\n".join(lyrics)
    if lyrics is not None and not isinstance(lyrics, str):
        raise UserError(f"{where}: the field '{names.lyrics}' is not text; name the right one by --lyrics_field")
    return Song(
        title=_as_text(record.get(names.title)),
        artist=_as_text(record.get(names.artist)),
        feelings=_as_feelings(record.get(names.feelings)),
        lyrics=lyrics or "",
    )


def _as_text(value: Any) -> str:
    return "" if value is None else str(value)


def _as_feelings(value: Any) -> tuple[str, ...]:
    """Feelings from a list, or from text such as "alegría, amor" or "['alegría', 'amor']"."""
    parts = value if isinstance(value, (list, tuple)) else re.split(r"[,;|]", _as_text(value).strip("[]() "))
    return tuple(word for word in (_as_text(part).strip("'\" \t") for part in parts) if word)


def _not_utf8(source: Path, line: int) -> UserError:
    with open(source, "rb") as file:
        encoding = "utf-16" if file.read(2) in (b"\xff\xfe", b"\xfe\xff") else "windows-1252"
    return UserError(
        f"{source}: line {line} is not UTF-8; convert it, for example: iconv -f {encoding} -t utf-8 {source} > songs_utf8"
        f"{source.suffix}"
    )


def _require_utf8(source: Path) -> None:
    """Raise the UserError that names the file's first line that isn't UTF-8, if there is one."""
    for _ in _lines(source):
        pass


def _lines(source: Path) -> Iterator[tuple[str, int, int]]:
    """A text file's lines as (text, number from 1, bytes read so far)."""
    position = 0
    with open(source, "rb") as file:
        for number, line in enumerate(file, start=1):
            position += len(line)
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8"), number, position
            except UnicodeDecodeError:
                raise _not_utf8(source, number) from None


def _read_jsonl(source: Path) -> Records:
    for line, number, position in _lines(source):
        if not line.strip():
            continue
        try:
            yield json.loads(line), position
        except json.JSONDecodeError as problem:
            raise UserError(
                f"{source}: line {number} is not valid JSON ({problem.msg} at column {problem.colno}); mend or remove it"
            ) from None


def _read_json(source: Path) -> Records:
    """A JSON array of objects; or, since files of that name hold it often, JSONL."""
    with open(source, "rb") as file:
        start = 3 if file.read(3) == _BYTE_ORDER_MARK else 0
        file.seek(start)
        if file.read(4096).lstrip()[:1] != b"[":
            yield from _read_jsonl(source)
            return
        file.seek(start)
        try:
            for record in ijson.items(file, "item", use_float=True):
                yield record, file.tell()
        except (ijson.JSONError, UnicodeDecodeError) as problem:
            _require_utf8(source)
            reason = problem.args[0].decode() if isinstance(problem.args[0], bytes) else str(problem)
            reason = reason.splitlines()[0].strip()
            raise UserError(f"{source}: not a valid JSON array ({reason}); mend the file") from None


def _read_table(source: Path) -> Records:
    csv.field_size_limit(1 << 30)  # the default of 128 KiB is less than a long lyric file's field may be
    header, _, _ = next(_lines(source))
    delimiter = max("\t", ";", ",", key=header.count)  # a spreadsheet's "CSV" has semicolons where the comma is decimal
    with open(source, "rb") as file:
        text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
        reader = csv.DictReader(text, delimiter=delimiter, strict=True)
        try:
            for row in reader:
                if None in row:
                    raise UserError(
                        f"{source}: line {reader.line_num} has more columns than the header; quote the fields that hold "
                        f"'{delimiter}'"
                    )
                yield row, file.tell()
        except UnicodeDecodeError:
            _require_utf8(source)
        except csv.Error as problem:
            raise UserError(f"{source}: line {reader.line_num} is not valid CSV ({problem}); mend it") from None


def _read_parquet(source: Path) -> Records:
    try:
        table = pyarrow.parquet.ParquetFile(source)
    except pyarrow.ArrowInvalid:
        raise UserError(f"{source}: not a Parquet file; convert it, or give it the ending of what it is") from None
    size, done = source.stat().st_size, 0
    for batch in table.iter_batches(batch_size=256):
        for record in batch.to_pylist():
            done += 1
            yield record, size * done // table.metadata.num_rows


def _read_tagged_text(source: Path) -> Records:
    """Records of `Título:`, `Artista:`, optionally `Sentimientos:`, then the lyrics, ended by `<|endoftext|>`."""
    names = {"t": "title", "a": "artist", "s": "feelings"}
    record: dict[str, str] = {}
    lyrics: list[str] = []
    seen_mark = False

    def finished() -> Record:
        return {"title": "", "artist": "", "feelings": "", **record, "lyrics": "".join(lyrics).strip("\r\n")}

    position = 0
    for line, _, position in _lines(source):
        while END_OF_TEXT in line:
            before, line = line.split(END_OF_TEXT, 1)
            lyrics.append(before)
            seen_mark = True
            yield finished(), position
            record, lyrics = {}, []
        tag = _TAG.fullmatch(line.rstrip("\r\n")) if not any(map(str.strip, lyrics)) else None
        if tag and names[tag[1][0].lower()] not in record:
            record[names[tag[1][0].lower()]] = tag[2].strip()
        else:
            lyrics.append(line)
    if not seen_mark:
        raise UserError(
            f"{source}: no {END_OF_TEXT} in this file, so there is no telling where a song ends; "
            f"write 'Título: ...', 'Artista: ...', the lyrics and {END_OF_TEXT} for each song"
        )
    if record or any(map(str.strip, lyrics)):
        yield finished(), position


_READERS: dict[str, Callable[[Path], Records]] = {
    ".json": _read_json,
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".csv": _read_table,
    ".tsv": _read_table,
    ".parquet": _read_parquet,
    ".txt": _read_tagged_text,
}
