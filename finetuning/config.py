"""The settings of the three scripts, their defaults, and what is wrong with them."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from finetuning.command_line import setting

BASE_MODEL = "datificate/gpt2-small-spanish"
ENCODER = "sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2"
SONG_HEADER = "Título: {title}\nArtista: {artist}\nSentimientos: {feelings}"
HEADER_FIELDS = {"title", "artist", "feelings"}

# Settings of train.py that stand in the same words in evaluate.py.
DATA_DIR_HELP = "the folder that split_data.py wrote"
OUTPUT_DIR_HELP = "the folder of all runs"
RUN_NAME_HELP = "the run's name, and its folder in --output_dir"


@dataclass
class SplitConfig:
    """Split a corpus of songs into parts, one for each stage, each with training and held-out (validation) songs.

    python split_data.py --input songs.json
    """

    input: list[Path] = setting(help="files or folders of songs: .json, .jsonl, .csv, .tsv, .parquet, .txt")
    output_dir: Path = setting(Path("data/splits"), help="where the parts and their manifest go; replaced when whole")
    parts: int = setting(4, at_least=1, help="how many parts, one for each stage")
    validation_fraction: float = setting(
        0.05, above=0, at_most=0.5, help="the share of a part's songs that is held out, at least one song"
    )
    order: Literal["shuffled", "given"] = setting(
        "shuffled", help="deal the songs to the parts at random, or cut the corpus in sequence"
    )
    duplicates: Literal["drop", "keep"] = setting(
        "drop", help="of songs that are nearly the same keep the first, or keep all on one side of one part"
    )
    duplicate_threshold: float = setting(
        0.5, above=0, at_most=1, help="songs that share this much of their word triples (Jaccard) are nearly the same"
    )
    section_marks: Literal["keep", "remove"] = setting("keep", help="keep or remove lines such as [Coro] and [Verso 1: Ana]")
    seed: int = setting(0, at_least=0, help="the same seed and input give the same bytes")
    title_field: str = setting("title", help="the field or column of the title, if there is one")
    artist_field: str = setting("artist", help="the field or column of the artist, if there is one")
    feelings_field: str = setting("feelings", help="the field or column of the feelings, if there is one")
    lyrics_field: str = setting("lyrics", help="the field or column of the lyrics")

    def mistakes(self) -> list[str]:
        names = [self.title_field, self.artist_field, self.feelings_field, self.lyrics_field]
        twice = sorted({name for name in names if names.count(name) > 1})
        return [f"--..._field {name}: two fields have this name; give each its own" for name in twice]


@dataclass
class TrainConfig:
    """Fine-tune a causal language model on one stage's songs, or on several stages in a row.

    Stage k trains on part k and starts from the finished model of stage k-1; stage 1 starts from the base model.

    accelerate launch train.py --stage 2
    python train.py --stage 1 2 3 4
    """

    stage: list[int] = setting(at_least=1, help="the stage to train, or several in ascending order")
    data_dir: Path = setting(Path("data/splits"), help=DATA_DIR_HELP)
    output_dir: Path = setting(Path("runs"), help=OUTPUT_DIR_HELP)
    run_name: str = setting("default", help=RUN_NAME_HELP)
    overwrite: bool | None = setting(
        None,
        help="train a finished stage again, replaced only when the new one is whole, and drop unfinished work that has "
        "other settings; with --no-overwrite, stop if a stage is finished; by default a stage finished with the same "
        "settings, data and parent is kept, and one with others is trained again",
    )
    dry_run: bool = setting(False, help="print what would happen (songs, tokens, steps, parent, disk) and stop")

    model_name_or_path: str = setting(
        BASE_MODEL, help="the base model of stage 1: a name of the hub, a local folder, or 'embedded'"
    )
    song_header: str = setting(
        SONG_HEADER,
        help="what stands before the lyrics, with {title}, {artist}, {feelings}; a line whose field isn't known is left "
        "out; 'none' for the lyrics alone",
    )
    block_size: int | None = setting(
        None, at_least=8, help="tokens of the longest piece of a song; longer songs are cut (default: the model's context)"
    )

    num_epochs: int = setting(3, at_least=1, help="times that every song of the part is seen")
    global_batch_size: int = setting(4, at_least=1, help="songs of an optimiser step, over all processes")
    micro_batch_size: int | None = setting(
        None,
        at_least=1,
        help="songs, or pieces of long ones, of one forward pass at most; fewer take less memory (default: all that the "
        "global batch gives a process)",
    )
    learning_rate: float = setting(5e-5, above=0, help="the highest learning rate, reached after the warm-up")
    warmup_steps: int = setting(100, at_least=0, help="steps over which the learning rate rises; then it falls to 0")
    weight_decay: float = setting(0.01, at_least=0, help="AdamW's weight decay; biases and layer norms have none")
    max_grad_norm: float = setting(1.0, above=0, help="the gradient's norm is clipped to this")
    mixed_precision: Literal["auto", "no", "bf16"] = setting(
        "auto", help="bf16 where the accelerator has it and fp32 elsewhere, or always fp32 (no), or always bf16"
    )
    seed: int = setting(0, at_least=0, help="the same seed gives the same run")

    checkpointing_steps: int = setting(500, at_least=1, help="a checkpoint every so many steps")
    save_total_limit: int = setting(2, at_least=1, help="how many checkpoints of a stage are kept")
    logging_steps: int = setting(1000, at_least=1, help="a log line every so many steps, and at the end")
    report_to: list[Literal["tensorboard", "wandb", "none"]] = setting(["none"], help="trackers beside metrics.jsonl")

    def mistakes(self) -> list[str]:
        found = [*run_name_mistakes(self.run_name), *header_mistakes(self.song_header)]
        if sorted(set(self.stage)) != self.stage:
            found.append(f"--stage {' '.join(map(str, self.stage))}: name each stage once, in ascending order")
        elif self.stage != list(range(self.stage[0], self.stage[-1] + 1)):
            found.append(f"--stage {' '.join(map(str, self.stage))}: each starts from the one before it; leave none out")
        if "none" in self.report_to and len(self.report_to) > 1:
            found.append("--report_to: 'none' beside other trackers; leave out one or the other")
        return found


@dataclass
class EvaluateConfig:
    """Judge the models of a run's stages on held-out songs and on texts that they write; write one report.

    accelerate launch evaluate.py --run_name default
    """

    run_name: str = setting("default", help=RUN_NAME_HELP)
    output_dir: Path = setting(Path("runs"), help=OUTPUT_DIR_HELP)
    data_dir: Path = setting(Path("data/splits"), help=DATA_DIR_HELP)
    stages: list[int] | None = setting(
        None, at_least=0, help="the stages to judge; 0 is the base model (default: 0 and all finished stages)"
    )
    encoder: str = setting(ENCODER, help="the sentence encoder for coherence: a name of the hub, a folder, or 'embedded'")

    window: int | None = setting(
        None, at_least=8, help="tokens that the model sees at once when it scores (default: the block size of training)"
    )
    stride: int | None = setting(
        None, at_least=1, help="tokens by which the window moves on in longer songs (default: half the window)"
    )

    num_samples: int = setting(32, at_least=1, help="texts that every stage writes")
    prompts: Path | None = setting(
        None, help="a text file, one prompt a line (default: header and first line of held-out songs)"
    )
    max_new_tokens: int = setting(300, at_least=1, help="tokens of a text at most")
    temperature: float = setting(0.8, above=0, help="below 1 the model takes fewer risks")
    top_p: float = setting(0.95, above=0, at_most=1, help="draw from the likeliest tokens that have this much in sum")
    repetition_penalty: float = setting(
        1.0, above=0, help="above 1 punishes words said before, and distorts every diversity metric"
    )
    generation_batch_size: int = setting(16, at_least=1, help="texts written at once; the texts don't depend on it")
    coherence_unit: Literal["line", "sentence"] = setting(
        "line", help="what local coherence compares: lines, or sentences by NLTK's Spanish Punkt"
    )
    seed: int = setting(0, at_least=0, help="the same seed gives the same texts")

    def mistakes(self) -> list[str]:
        found = run_name_mistakes(self.run_name)
        if self.window and self.stride and self.stride >= self.window:
            found.append(
                f"--stride {self.stride}: must be below --window {self.window}, or tokens are scored without context"
            )
        if self.stages and sorted(set(self.stages)) != self.stages:
            found.append(f"--stages {' '.join(map(str, self.stages))}: name each stage once, in ascending order")
        return found


def run_name_mistakes(run_name: str) -> list[str]:
    """What keeps `run_name` from being a folder's name that no shell trips over."""
    if re.fullmatch(r"[\w][\w.-]*", run_name):
        return []
    return [f"--run_name {run_name!r}: use letters, digits, '_', '-' and '.' only, and begin with none of the last two"]


def header_mistakes(song_header: str) -> list[str]:
    """What keeps `song_header` from being filled in."""
    unknown = sorted(set(re.findall(r"{(.*?)}", song_header)) - HEADER_FIELDS)
    return [f"--song_header: unknown field {{{name}}}; there are {{title}}, {{artist}} and {{feelings}}" for name in unknown]
