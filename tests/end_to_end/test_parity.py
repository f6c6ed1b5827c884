"""The hand-written loop does what transformers' Trainer does: every step's loss and the final weights."""

from pathlib import Path

import torch
from torch.utils.data import Sampler
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainingArguments,
)

from finetuning.batches import cut_into_blocks, songs_of_step, tokenize_song
from finetuning.config import SONG_HEADER
from finetuning.corpus import Song, read_split_file
from tests.end_to_end.scripts import losses, succeed

SEED, STAGE, EPOCHS, BATCH, MICRO_BATCH, WARMUP, RATE = 3, 1, 2, 4, 2, 2, 1e-3


def short_songs(sample: list[Song], folder: Path) -> Path:
    """A split into one part whose songs fit the tiny model's context whole, so that a song is an example of Trainer."""
    path = folder / "songs.jsonl"
    short = [
        Song(song.title, song.artist, (), "\n".join(song.lyrics.split("\n")[: 2 + i % 3]))
        for i, song in enumerate(sample[:11])
    ]
    path.write_text("".join(song.to_json_line() for song in short), encoding="utf-8")
    succeed("split_data.py", "--input", path, "--parts", 1, "--output_dir", folder / "splits")
    return folder / "splits"


def test_losses_and_weights_are_those_of_trainer(sample, tiny_model, tmp_path):
    data = short_songs(sample, tmp_path)
    succeed(
        "train.py", "--stage", STAGE, "--data_dir", data, "--output_dir", tmp_path / "runs", "--seed", SEED,
        "--model_name_or_path", tiny_model, "--num_epochs", EPOCHS, "--global_batch_size", BATCH,
        "--micro_batch_size", MICRO_BATCH, "--warmup_steps", WARMUP, "--learning_rate", RATE, "--mixed_precision", "no",
    )  # fmt: skip
    ours = losses(tmp_path / "runs" / "default" / "stage_1")

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    songs = read_split_file(data / f"part_{STAGE}" / "train.jsonl")
    examples = [{"input_ids": tokenize_song(song, tokenizer, SONG_HEADER)[0]} for song in songs]
    assert all(len(cut_into_blocks(example["input_ids"], 128)) == 1 for example in examples)
    assert len(songs) % BATCH != 0, "the last batch of an epoch isn't full"
    assert len({len(example["input_ids"]) for example in examples}) > 3, "there is something to pad"

    class OurOrder(Sampler):
        """The order of train.py's steps; Trainer asks once an epoch."""

        epoch = 0

        def __len__(self):
            return len(songs)

        def __iter__(self):
            steps = range(self.epoch * -(-len(songs) // BATCH), (self.epoch + 1) * -(-len(songs) // BATCH))
            self.epoch += 1
            return iter([song for step in steps for song in songs_of_step(step, len(songs), BATCH, SEED, STAGE)])

    class TrainerInOurOrder(Trainer):
        """ "Trainer, with its losses noted before it rounds them for its log."""

        def _get_train_sampler(self, train_dataset=None):
            return OurOrder()

        def training_step(self, model, inputs, num_items_in_batch=None):
            loss = super().training_step(model, inputs, num_items_in_batch)
            step = self.state.global_step + 1
            unrounded[step] = unrounded.get(step, 0.0) + loss.item()
            return loss

    unrounded: dict[int, float] = {}
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    # Trainer 5.23 doesn't recognise GPT2LMHeadModel's loss by its name, and then also divides by the first token of each
    # row, which nothing predicts. Told the loss, it divides by the predicted tokens.
    model.loss_type = "ForCausalLM"
    trainer = TrainerInOurOrder(
        model=model,
        args=TrainingArguments(
            output_dir=str(tmp_path / "trainer"), num_train_epochs=EPOCHS, per_device_train_batch_size=MICRO_BATCH,
            gradient_accumulation_steps=BATCH // MICRO_BATCH, learning_rate=RATE, warmup_steps=WARMUP, weight_decay=0.01,
            max_grad_norm=1.0, lr_scheduler_type="linear", logging_steps=1, save_strategy="no", report_to=[], use_cpu=True,
            disable_tqdm=True, seed=SEED,
        ),
        train_dataset=examples,
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
    )  # fmt: skip
    trainer.train()

    assert sorted(ours) == sorted(unrounded) == list(range(1, 7))
    for step, loss in unrounded.items():
        assert abs(ours[step] - loss) < 1e-5, (step, ours[step], loss)
    trained = AutoModelForCausalLM.from_pretrained(tmp_path / "runs" / "default" / "stage_1" / "model").state_dict()
    start = AutoModelForCausalLM.from_pretrained(tiny_model).state_dict()
    for name, weights in model.state_dict().items():
        assert (trained[name] - weights).abs().max() < 1e-5, name
    assert max((trained[name] - start[name]).abs().max() for name in trained) > 1e-3, "it has learned something"
    assert torch.isfinite(trained["transformer.wte.weight"]).all()
