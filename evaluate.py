"""Judge the models of a run's stages, and the base model as stage 0, on equal terms; write one report.

Every stage scores the same held-out songs of every part, and continues the same prompts with the same random numbers.
Beside them stand the human continuations of those prompts. Diversity falls as texts grow, so of each prompt all
continuations, human and machine, are cut to the same number of words.
"""

import random
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from finetuning.command_line import check_command_line, parse, to_plain
from finetuning.config import EvaluateConfig

if __name__ == "__main__":
    check_command_line(EvaluateConfig)  # so that --help and mistakes don't wait for the imports below

import nltk
import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from transformers import PreTrainedTokenizerBase

from finetuning.batches import encode, fill_header, tokenize_song
from finetuning.corpus import Song, read_split_file
from finetuning.errors import UserError, require_writable, run_script
from finetuning.files import sha256_of, whole_folder
from finetuning.generation import Sampling, generate
from finetuning.models import context_length, find_causal_lm, find_encoder, load_causal_lm, load_encoder, load_tokenizer
from finetuning.perplexity import Likelihood, Text, likelihoods, total
from finetuning.progress import Progress
from finetuning.report import Report, print_table, write_report
from finetuning.run_folder import RunFolder
from finetuning.text_metrics import (
    coherence,
    count_words,
    cut_to_words,
    distinct_n,
    lexical_diversity,
    lines_of,
    mean,
    words_of,
)
from finetuning.tracking import read_metrics

HUMAN = "human"


@dataclass
class Prompt:
    """What all stages continue, and how a human went on."""

    text: str
    tokens: list[int]
    human: str  # the lyrics after the prompt; for a prompt of the user's own, those of some held-out song
    title: str


@dataclass
class StageResult:
    """What one stage's model scored and wrote."""

    stage: int
    held_out: dict[int, Likelihood]  # by part
    own_text: Likelihood
    texts: list[str] = field(default_factory=list)  # one a prompt, without the prompt


def main() -> None:
    # ----------------------------------------------------------------------------------- what is asked for, and is it there
    config = parse(EvaluateConfig)
    accelerator = Accelerator()
    run = RunFolder(config.output_dir, config.run_name)
    records = read_records(config, run)
    stages = config.stages if config.stages is not None else [0, *sorted(records)]
    check_split(config, records)
    require_writable(run.path, "--output_dir")
    recipe = records[max(records)]["recipe"]
    with accelerator.main_process_first():  # what has to be downloaded or built is, once
        models = {stage: find_model(stage, run, records) for stage in stages}
    encoder_folder = find_encoder(config.encoder, "--encoder")
    sentences = sentence_splitter(config)
    tokenizer = load_tokenizer(*models[stages[-1]])
    context = context_length(*models[stages[-1]])
    window = min(config.window or recipe["block_size"], context)
    stride = config.stride or window // 2
    held_out = read_held_out(config)
    prompts = make_prompts(config, held_out, tokenizer, recipe["song_header"])

    # ---------------------------------------------------------------------------------------------- what the models say
    results = []
    for stage in stages:
        model = load_causal_lm(*models[stage]).to(accelerator.device)
        texts = {
            (part, number): scored_text(song, tokenizer, recipe["song_header"])
            for part, songs in held_out.items()
            for number, song in enumerate(songs)
        }
        result = StageResult(stage, {}, Likelihood(0.0, 0))
        scores = likelihoods(
            model, list(texts.values()), accelerator, window=window, stride=stride,
            on_progress=reporter(f"Stage {stage}: scoring held-out songs", "rows", accelerator),
        )  # fmt: skip
        for part in held_out:
            result.held_out[part] = total([score for (of, _), score in zip(texts, scores, strict=True) if of == part])
        written = write_texts(model, prompts, config, tokenizer, context, stage, accelerator)
        own = [Text(prompt.tokens + tokens, len(prompt.tokens)) for prompt, tokens in zip(prompts, written, strict=True)]
        result.own_text = total(likelihoods(model, own, accelerator, window=context, stride=context // 2))
        result.texts = [tokenizer.decode(tokens).strip("\n") for tokens in written]
        results.append(result)
        del model
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    # ------------------------------------------------------------------------------------------------ what it amounts to
    accelerator.end_training()
    if not accelerator.is_main_process:
        return
    encoder = load_encoder(encoder_folder, "--encoder", accelerator.device)
    candidates = {str(result.stage): result.texts for result in results}
    candidates[HUMAN] = [prompt.human for prompt in prompts]
    different = len({prompt.text for prompt in prompts} if config.prompts else {prompt.human for prompt in prompts})
    lengths = [min(count_words(texts[i]) for texts in candidates.values()) for i in range(len(prompts))]
    rows = []
    for name, texts in candidates.items():
        cut = [cut_to_words(text, length) for text, length in zip(texts, lengths, strict=True)]
        row = {"stage": name, **judge_texts(cut, different, encoder, sentences)}
        if name != HUMAN:
            row = {**row, **judge_likelihoods(next(each for each in results if str(each.stage) == name))}
        rows.append(row)
    report = Report(
        run_name=config.run_name,
        made_at=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        settings=to_plain(config) | {"window": window, "stride": stride, "song_header": recipe["song_header"]},
        base_model=records[1]["recipe"]["base_model"],
        rows=rows,
        prompts=len(prompts),
        different_prompts=different,
        words_compared=sum(lengths),
        parts=sorted(held_out),
        held_out_songs=sum(map(len, held_out.values())),
        records=records,
        training={stage: read_metrics(run.stage(stage).metrics) for stage in sorted(records)},
        samples=samples_of(prompts, candidates, lengths),
        versions={name: version(name) for name in ("torch", "transformers", "sentence-transformers", "nltk")},
    )
    with whole_folder(run.evaluation) as folder:
        write_report(folder, report)
    print_table(report)
    print(f"\nThe report: {run.evaluation / 'report.html'}")


def read_records(config: EvaluateConfig, run: RunFolder) -> dict[int, dict[str, Any]]:
    """The records of the finished stages up to the last one asked for. Raises UserError where one is missing."""
    finished = run.finished_stages()
    name = "" if config.run_name == "default" else f" --run_name {config.run_name}"
    if not finished:
        raise UserError(
            f"--run_name {config.run_name}: {run.path} has no finished stage; train one with: accelerate launch train.py "
            f"--stage 1{name}"
        )
    UserError.of_all(
        f"--stages {stage}: stage {stage} of run '{config.run_name}' isn't finished (finished: "
        f"{', '.join(map(str, finished))}); train it with: accelerate launch train.py --stage {stage}{name}"
        for stage in config.stages or []
        if stage != 0 and stage not in finished
    )
    records = {stage: run.stage(stage).read_record() for stage in finished}
    return {stage: record for stage, record in records.items() if record is not None}


def check_split(config: EvaluateConfig, records: dict[int, dict[str, Any]]) -> None:
    """Refuse another split than the stages were trained on: its held-out songs may be songs that they have seen."""
    mistakes = []
    for stage, record in records.items():
        path = config.data_dir / f"part_{stage}" / "train.jsonl"
        if not path.is_file():
            mistakes.append(
                f"--data_dir {config.data_dir}: {path} is missing; name the split that the stages were trained on"
            )
        elif sha256_of(path) != record["data"]["train"]["sha256"]:
            mistakes.append(
                f"--data_dir {config.data_dir}: stage {stage} was trained on another split than this, so what is held out "
                "here may have been trained on; name the right split, or train again"
            )
    UserError.of_all(mistakes)


def find_model(stage: int, run: RunFolder, records: dict[int, dict[str, Any]]) -> tuple[str, str]:
    """Where a stage's model is, and what to call it in an error."""
    if stage == 0:
        name = records[1]["recipe"]["base_model"]
        return find_causal_lm(name, "stage 0:"), "stage 0:"
    return find_causal_lm(str(run.stage(stage).model), f"stage {stage}:"), f"stage {stage}:"


def read_held_out(config: EvaluateConfig) -> dict[int, list[Song]]:
    """The held-out songs by part."""
    folders = sorted(config.data_dir.glob("part_*"), key=lambda path: int(path.name.removeprefix("part_")))
    return {int(path.name.removeprefix("part_")): read_split_file(path / "validation.jsonl") for path in folders}


def scored_text(song: Song, tokenizer: PreTrainedTokenizerBase, header: str) -> Text:
    """A song as it is scored: its header is context, its lyrics and end count. Knowing the header's form gains nothing."""
    tokens, header_length = tokenize_song(song, tokenizer, header)
    return Text(tokens, max(1, header_length))


def make_prompts(
    config: EvaluateConfig, held_out: dict[int, list[Song]], tokenizer: PreTrainedTokenizerBase, header: str
) -> list[Prompt]:
    """`num_samples` prompts: headers and first lines of held-out songs, or the lines of the user's file, in turn."""
    songs = [song for part in held_out.values() for song in part]
    long_enough = [song for song in songs if len(lines_of(song.lyrics)) >= 2] or songs
    random.Random(config.seed).shuffle(long_enough)
    given: list[str] = []
    if config.prompts:
        try:
            given = [line.strip() for line in config.prompts.read_text(encoding="utf-8").splitlines() if line.strip()]
        except UnicodeDecodeError:
            raise UserError(f"--prompts {config.prompts}: not UTF-8; convert it with iconv") from None
        if not given:
            raise UserError(f"--prompts {config.prompts}: the file is empty; write one prompt a line")
    prompts = []
    for number in range(config.num_samples):
        song = long_enough[number % len(long_enough)]
        first_line, _, rest = song.lyrics.partition("\n")
        if given:
            text = given[number % len(given)] + "\n"
            prompts.append(Prompt(text, encode(text, tokenizer), song.lyrics, ""))
        else:
            # Tokenized in two, as a song is.
            before, line = fill_header(song, header), first_line + "\n"
            tokens = encode(before, tokenizer) + encode(line, tokenizer)
            prompts.append(Prompt(before + line, tokens, rest.strip("\n"), song.title))
    return prompts


def sentence_splitter(config: EvaluateConfig) -> Any:
    """NLTK's Spanish sentence tokenizer, or None where lines are compared."""
    if config.coherence_unit == "line":
        return None
    try:
        return nltk.tokenize.PunktTokenizer("spanish")
    except LookupError:
        raise UserError(
            "--coherence_unit sentence: NLTK's Punkt data is missing; fetch it with: python -m nltk.downloader punkt_tab, "
            "or compare lines"
        ) from None


def reporter(title: str, unit: str, accelerator: Accelerator) -> Any:
    """A function to be told (done, of how many), which shows it."""
    progress: list[Progress] = []

    def show(done: int, of: int) -> None:
        if not progress:
            progress.append(Progress(of, unit, title, enabled=accelerator.is_main_process))
            progress[0].say(title)
        progress[0].update(done)
        if done == of:
            progress[0].close()

    return show


def write_texts(
    model: Any,
    prompts: list[Prompt],
    config: EvaluateConfig,
    tokenizer: PreTrainedTokenizerBase,
    context: int,
    stage: int,
    accelerator: Accelerator,
) -> list[list[int]]:
    """The new tokens of each prompt's continuation, the work shared by all processes, the result the same on all."""
    mine = range(accelerator.process_index, len(prompts), accelerator.num_processes)
    written = generate(
        model,
        [prompts[number].tokens for number in mine],
        list(mine),
        Sampling(config.max_new_tokens, config.temperature, config.top_p, config.repetition_penalty, config.seed),
        end_of_text=tokenizer.eos_token_id,
        context=context,
        batch_size=config.generation_batch_size,
        on_progress=reporter(f"Stage {stage}: writing texts", "texts", accelerator),
    )
    pairs = gather_object(list(zip(mine, written, strict=True)))
    return [tokens for _, tokens in sorted(pairs)]


def judge_texts(texts: list[str], different: int, encoder: Any, sentences: Any) -> dict[str, Any]:
    """The figures of texts that were cut to the lengths of all candidates.

    Where there are more texts than `different` prompts, the prompts come in rounds. Distinct-n is that of a round, mean
    over rounds: the human song of a prompt is the same each time, and mustn't count as monotonous for it.
    """
    rounds = [texts[start : start + different] for start in range(0, len(texts), different)]
    units = [sentences.tokenize(text) if sentences else lines_of(text) for text in texts]
    distinct = sorted({unit for text_units in units for unit in text_units})
    vectors = dict(zip(distinct, encoder.encode(distinct, batch_size=64, show_progress_bar=False), strict=True))
    coherences = [coherence_of(text_units, vectors) for text_units in units]
    diversities = [lexical_diversity(text) for text in texts]
    return {
        "distinct_1": mean([distinct_n(each, 1) for each in rounds]),
        "distinct_2": mean([distinct_n(each, 2) for each in rounds]),
        "distinct_3": mean([distinct_n(each, 3) for each in rounds]),
        "lexical_diversity": mean(diversities),
        "coherence": mean(coherences),
        "texts_with_words": sum(bool(words_of(text)) for text in texts),
        "texts_with_two_units": sum(value is not None for value in coherences),
    }


def coherence_of(units: list[str], vectors: dict[str, Any]) -> float | None:
    """Local coherence of one text, from the embeddings of its lines or sentences."""
    return coherence(np.stack([vectors[unit] for unit in units])) if len(units) > 1 else None


def judge_likelihoods(result: StageResult) -> dict[str, Any]:
    """A stage's perplexities."""
    return {
        "perplexity": total(list(result.held_out.values())).perplexity,
        "perplexity_by_part": {str(part): likelihood.perplexity for part, likelihood in result.held_out.items()},
        "tokens_scored": total(list(result.held_out.values())).tokens,
        "perplexity_of_own_texts": result.own_text.perplexity if result.own_text.tokens else None,
    }


def samples_of(prompts: list[Prompt], candidates: dict[str, list[str]], lengths: list[int]) -> list[dict[str, Any]]:
    """Every text, uncut, with its prompt and the words of it that were compared."""
    return [
        {"prompt": number, "title": prompt.title, "stage": name, "words_compared": lengths[number],
         "prompt_text": prompt.text, "text": texts[number]}
        for number, prompt in enumerate(prompts)
        for name, texts in candidates.items()
    ]  # fmt: skip


if __name__ == "__main__":
    run_script(main)
