"""Songs -> tokens -> the global batch of a step -> the rows of this process's forward passes.

A step is a global batch of songs, whatever the machine, and which songs it has follows from (seed, stage, step) alone.
Nothing is padded: the songs of a forward pass lie end to end in one row, with positions that start again at each song.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from finetuning.corpus import Song

NO_TARGET = -100  # what cross_entropy ignores


@dataclass(frozen=True, slots=True)
class Row:
    """One forward pass: pieces of text end to end, and for each token the next one of its own piece.

    All have shape (1, tokens) and dtype int64; `targets` is NO_TARGET where a loss is not wanted.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    targets: torch.Tensor

    def to(self, device: torch.device) -> "Row":
        return Row(*(tensor.to(device, non_blocking=True) for tensor in (self.input_ids, self.position_ids, self.targets)))


def fill_header(song: Song, template: str) -> str:
    """What stands before a song's lyrics: the template's lines whose fields are all known, then an empty line.

    `template` is 'none' for nothing. A "\\n" typed on a command line is a line end.
    """
    if template == "none":
        return ""
    fields = {"title": song.title, "artist": song.artist, "feelings": ", ".join(song.feelings)}
    lines = []
    for line in template.replace("\\n", "\n").split("\n"):
        if all(value or f"{{{name}}}" not in line for name, value in fields.items()):
            # In one pass, so that a title such as "{artist}" stays as it is.
            lines.append(re.sub(r"{(title|artist|feelings)}", lambda found: fields[found[1]], line))
    return "\n".join(lines) + "\n\n" if lines else ""


def encode(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """A text's tokens, with no token that the text doesn't have."""
    return tokenizer.encode(text, add_special_tokens=False, verbose=False)


def tokenize_song(song: Song, tokenizer: PreTrainedTokenizerBase, template: str) -> tuple[list[int], int]:
    """A song's tokens (header, lyrics, end of text) and how many of them are the header's.

    Header and lyrics are tokenized apart, so that a prompt made of a header gives the tokens that training had.
    """
    header = encode(fill_header(song, template), tokenizer)
    return [*header, *encode(song.lyrics, tokenizer), tokenizer.eos_token_id], len(header)


def cut_into_blocks(tokens: list[int], block_size: int) -> list[list[int]]:
    """Consecutive pieces of at most `block_size` tokens; none is dropped.

    Each piece but the first repeats the last token of the one before it, so that every token but the song's first is
    predicted once.
    """
    starts = range(0, max(1, len(tokens) - 1), block_size - 1)
    return [tokens[start : start + block_size] for start in starts]


def seed_of(*parts: int | str) -> int:
    """A seed of 63 bits that follows from the parts alone."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1


def steps_per_epoch(num_songs: int, global_batch_size: int) -> int:
    """Optimiser steps of an epoch; the last one may have fewer songs than the others."""
    return -(-num_songs // global_batch_size)


def songs_of_step(step: int, num_songs: int, global_batch_size: int, seed: int, stage: int) -> list[int]:
    """The songs, by number, of optimiser step `step` (from 0): a function of the arguments, with no state to save."""
    epoch, step_of_epoch = divmod(step, steps_per_epoch(num_songs, global_batch_size))
    generator = torch.Generator().manual_seed(seed_of("order of songs", seed, stage, epoch))
    order = torch.randperm(num_songs, generator=generator)
    return order[step_of_epoch * global_batch_size : (step_of_epoch + 1) * global_batch_size].tolist()


def deal(blocks: Sequence[list[int]], num_processes: int, micro_batch_size: int) -> list[list[list[list[int]]]]:
    """Share a global batch: for each process its micro-batches, each a list of blocks.

    Processes get nearly the same number of tokens: the longest block left goes to the process that has fewest. All
    processes get the same number of micro-batches, since each forward and backward pass may be a collective operation;
    where one has too few blocks for that, its last micro-batches are empty.
    """
    shares: list[list[int]] = [[] for _ in range(num_processes)]
    loads = [0] * num_processes
    for block in sorted(range(len(blocks)), key=lambda number: -len(blocks[number])):
        lightest = loads.index(min(loads))
        shares[lightest].append(block)
        loads[lightest] += len(blocks[block])
    count = max(-(-len(share) // micro_batch_size) for share in shares)
    dealt = []
    for share in shares:
        mine = [blocks[number] for number in sorted(share)]
        dealt.append([mine[turn * micro_batch_size : (turn + 1) * micro_batch_size] for turn in range(count)])
    return dealt


def count_targets(blocks: Sequence[list[int]]) -> int:
    """Tokens of the blocks that are predicted: all but the first of each."""
    return sum(len(block) - 1 for block in blocks)


def pack(blocks: Sequence[list[int]], first_targets: Sequence[int] | None = None, empty_token: int = 0) -> Row:
    """Put blocks end to end into one row without padding.

    Args:
        blocks: the pieces of text; none for a row that has no loss but can be run.
        first_targets: of each block the first token that counts in the loss (at least 1); by default 1 for all.
        empty_token: any token, for the row of no blocks.
    """
    if not blocks:
        blank = torch.tensor([[empty_token]])
        return Row(blank, torch.zeros_like(blank), torch.full_like(blank, NO_TARGET))
    first_targets = first_targets or [1] * len(blocks)
    targets = [
        [NO_TARGET] * (first - 1) + block[first:] + [NO_TARGET] for block, first in zip(blocks, first_targets, strict=True)
    ]
    return Row(
        input_ids=torch.tensor([[token for block in blocks for token in block]]),
        position_ids=torch.cat([torch.arange(len(block)) for block in blocks])[None],
        targets=torch.tensor([[token for block in targets for token in block]]),
    )
