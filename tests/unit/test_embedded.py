"""The embedded model is the same wherever it is built; the embedded encoder is the published one."""

from collections import Counter

import pytest

from finetuning import embedded
from finetuning.duplicates import plain_words
from finetuning.errors import UserError
from finetuning.files import sha256_of


def test_building_twice_gives_the_same_bytes(tmp_path):
    one, two = embedded.embedded_model(tmp_path / "one"), embedded.embedded_model(tmp_path / "two")
    names = sorted(path.name for path in one.iterdir())
    assert names == sorted(path.name for path in two.iterdir())
    assert "model.safetensors" in names
    for name in names:
        assert sha256_of(one / name) == sha256_of(two / name), name


def test_it_is_built_once(tmp_path):
    folder = embedded.embedded_model(tmp_path)
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert embedded.embedded_model(tmp_path) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == before


def test_it_is_an_ordinary_model_that_knows_spanish_letters(tmp_path):
    from transformers import pipeline

    folder = embedded.embedded_model(tmp_path)
    writer = pipeline("text-generation", model=str(folder))
    assert 1e6 < writer.model.num_parameters() < 1e7
    text = "¡Ñandú, pingüino! ¿Qué será?\n\nJamás: «él» — …"
    assert writer.tokenizer.decode(writer.tokenizer.encode(text)) == text
    assert writer("La noche", max_new_tokens=3, do_sample=False)[0]["generated_text"].startswith("La noche")


def test_the_encoder_is_the_published_one():
    assert (embedded.embedded_encoder() / "modules.json").is_file()


def test_another_encoder_is_refused(monkeypatch):
    monkeypatch.setattr(embedded, "_ENCODER_SHA256", "0" * 64)
    with pytest.raises(UserError, match="not the published"):
        embedded.embedded_encoder()


def test_the_sample_is_what_its_card_says(sample):
    assert len(sample) >= 150
    assert sum(len(song.lyrics.split()) for song in sample) >= 20_000
    assert all(song.title and song.artist and song.feelings for song in sample)
    assert len({song.title for song in sample}) == len(sample)
    assert all("\n\n" in song.lyrics for song in sample), "every song has stanzas"


def test_the_sample_is_no_template_with_words_swapped(sample):
    # A line may come back in its own song, as a refrain, but hardly ever in another one.
    songs_with_line = Counter(
        line
        for song in sample
        for line in {" ".join(plain_words(line)) for line in song.lyrics.splitlines()}
        if len(line) > 12
    )
    shared = [line for line, count in songs_with_line.items() if count > 1]
    assert len(shared) / len(songs_with_line) < 0.005, shared
