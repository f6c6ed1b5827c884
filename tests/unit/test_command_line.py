"""Settings come from flags over a file over defaults, and all mistakes are reported together."""

from pathlib import Path

import pytest
import yaml

from finetuning.command_line import parse, to_plain
from finetuning.config import EvaluateConfig, SplitConfig, TrainConfig
from finetuning.errors import UserError


def mistakes_of(config_class: type, *arguments: str) -> list[str]:
    with pytest.raises(UserError) as error:
        parse(config_class, list(arguments))
    return list(error.value.lines)


def test_defaults_are_the_original_recipe():
    config = parse(TrainConfig, ["--stage", "2"])
    assert config.stage == [2]
    assert config.model_name_or_path == "datificate/gpt2-small-spanish"
    assert (config.num_epochs, config.global_batch_size, config.learning_rate) == (3, 4, 5e-5)
    assert (config.warmup_steps, config.weight_decay, config.max_grad_norm) == (100, 0.01, 1.0)
    assert (config.checkpointing_steps, config.save_total_limit, config.logging_steps) == (500, 2, 1000)
    assert config.report_to == ["none"]
    assert parse(EvaluateConfig, []).encoder == "sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2"


def test_all_mistakes_at_once_each_naming_its_flag():
    found = mistakes_of(
        TrainConfig, "--stage", "x", "--num_epochs", "0", "--learning_rate", "nan", "--global_batch_size", "4", "5",
        "--mixed_precision", "fp12", "--seeed", "3",
    )  # fmt: skip
    assert len(found) == 6
    for flag in ("--stage", "--num_epochs", "--learning_rate", "--global_batch_size", "--mixed_precision", "--seeed"):
        assert any(line.startswith(flag) for line in found), flag
    assert any("did you mean --seed?" in line for line in found)


def test_a_missing_required_flag_is_named():
    assert mistakes_of(SplitConfig) == [
        "--input is missing: files or folders of songs: .json, .jsonl, .csv, .tsv, .parquet, .txt"
    ]


@pytest.mark.parametrize("name", ["a b", "a;rm", "../up", "", ".hidden", "it's", "-x"])
def test_run_names_that_a_shell_or_a_folder_trips_over_are_refused(name):
    assert "--run_name" in mistakes_of(TrainConfig, "--stage", "1", f"--run_name={name}")[0]


def test_run_names_with_accents_are_fine():
    assert parse(TrainConfig, ["--stage", "1", "--run_name", "canción_2.b"]).run_name == "canción_2.b"


def test_flags_win_over_the_file_and_the_file_over_defaults(tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text("stage: [1, 2]\nnum_epochs: 7\nlearning_rate: 1e-3\noverwrite: true\n", encoding="utf-8")
    config = parse(TrainConfig, ["--config", str(file), "--num_epochs", "9"])
    assert (config.stage, config.num_epochs, config.learning_rate, config.overwrite) == ([1, 2], 9, 1e-3, True)


def test_printed_settings_are_a_file_that_gives_the_same_settings(tmp_path, capsys):
    arguments = ["--stage", "3", "--song_header", "Título: {title}\\n¡{artist}!", "--report_to", "wandb", "--no-overwrite"]
    with pytest.raises(SystemExit) as leaving:
        parse(TrainConfig, [*arguments, "--print_config"])
    assert leaving.value.code == 0
    file = tmp_path / "settings.yaml"
    file.write_text(capsys.readouterr().out, encoding="utf-8")
    assert to_plain(parse(TrainConfig, ["--config", str(file)])) == to_plain(parse(TrainConfig, arguments))
    assert yaml.safe_load(file.read_text(encoding="utf-8"))["song_header"].endswith("¡{artist}!")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("num_epoch: 3", "unknown setting num_epoch; did you mean num_epochs?"),
        ("- 1\n- 2", "name: value"),
        ("stage: [1\nseed: {", "not valid YAML"),
        ("stage: {a: 1}", "--stage"),
        ("overwrite: perhaps", "neither true nor false"),
    ],
)
def test_mistakes_in_the_file(tmp_path, content, expected):
    file = tmp_path / "settings.yaml"
    file.write_text(content, encoding="utf-8")
    assert any(expected in line for line in mistakes_of(TrainConfig, "--config", str(file)))


def test_a_missing_file_of_settings_is_one_line():
    assert "check the path" in mistakes_of(TrainConfig, "--stage", "1", "--config", "nowhere.yaml")[0]


def test_values_that_fit_alone_but_not_together():
    assert "--stride" in mistakes_of(EvaluateConfig, "--window", "64", "--stride", "64")[0]
    assert "ascending" in mistakes_of(TrainConfig, "--stage", "2", "1")[0]
    assert "{year}" in mistakes_of(TrainConfig, "--stage", "1", "--song_header", "{year}")[0]
    assert "lyrics" in mistakes_of(SplitConfig, "--input", "x.csv", "--title_field", "lyrics")[0]


def test_none_switches_an_optional_setting_off():
    assert parse(TrainConfig, ["--stage", "1", "--block_size", "none"]).block_size is None


def test_paths_are_paths():
    assert parse(SplitConfig, ["--input", "a b.json", "c.csv"]).input == [Path("a b.json"), Path("c.csv")]


def test_help_shows_every_flag(capsys):
    with pytest.raises(SystemExit) as leaving:
        parse(TrainConfig, ["--help"])
    assert leaving.value.code == 0
    shown = capsys.readouterr().out
    assert "--no-overwrite" in shown
    assert "--print_config" in shown
    assert "default: 5e-05" in shown
