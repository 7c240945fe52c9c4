"""Speech recognition and translation: LibriSpeech, MLS, FLEURS, VoxPopuli, CoVoST 2."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

from alhena.evaluate.tasks import scores
from alhena.evaluate.tasks.extraction import spoken_text
from alhena.evaluate.tasks.items import Form, Item, Metric, Reported, Split, Task
from alhena.evaluate.tasks.languages import language_name
from alhena.evaluate.tasks.media.captions import first_of_groups
from alhena.evaluate.tasks.media.error_rates import WORD_ERRORS
from alhena.evaluate.tasks.media_files import Medium, inside
from alhena.evaluate.tasks.sources import Record, all_records, find_split, lines, records

TRANSCRIBE = Form(
    ask=lambda item: "Transcribe.",
    answer=lambda item: f" {item.reference}",
    extract=lambda item, output: spoken_text(output), max_tokens=256,
)  # fmt: skip
_LANGUAGES_OF_MLS = {
    "german": "de", "dutch": "nl", "french": "fr", "spanish": "es", "italian": "it", "portuguese": "pt", "polish": "pl", "english": "en",
}  # fmt: skip


def _spoken(id: str, text: str, group: str, language: str, audio: Medium) -> Item:
    return Item(id, "", (text.strip(),), group=group, facts={"language": language}, media=(audio,))


def _items(
    paths: Sequence[Path],
    split: Split,
    published: Callable[[Iterable[Path]], Iterable[Item]],
    hub: Callable[[Record], Item],
) -> list[Item]:
    """The items of a split, as shots the first of each group: in the files as the publisher has them, or as the hub has them (Parquet)."""
    is_hub = bool(paths) and paths[0].suffix == ".parquet"
    items = map(hub, all_records(paths)) if is_hub else published(paths)
    return first_of_groups(items) if split == "shots" else list(items)


def _names(split: Split) -> tuple[str, str]:
    """How publishers and the hub name a split; shots are of the one for validation."""
    return ("test", "test") if split == "test" else ("dev", "validation")


def _task(name: str, read: Callable[[Path, Split], Iterable[Item]], reported: Reported, note: str = "") -> Task:
    return Task(name, "audio", read, TRANSCRIBE, WORD_ERRORS, "greedy", 0, reported, shots_of_group=True, note=note)


# ── LibriSpeech, MLS ───────────────────────────────────────────────────────────────────────────────────────


def _utterances(path: Path, separator: str) -> Iterator[tuple[str, str]]:
    """Ids and transcripts of a file of the publisher. Raises ValueError for a line of another form."""
    for number, line in enumerate(lines(path), 1):
        id, found, text = line.partition(separator)
        if not found or not id or "/" in id:
            raise ValueError(f"{path}, line {number}: it must be an id and a transcript")
        yield id, text


def _librispeech_published(paths: Iterable[Path]) -> Iterator[Item]:
    for path in paths:
        part = path.parents[2].name.partition("-")[2]
        for id, text in _utterances(path, " "):
            audio = inside(path.parent, "audio", f"{id}.flac", f"{id}.wav")
            yield _spoken(f"librispeech-{id}", text, part, "en", audio)


def _librispeech_hub(record: Record) -> Item:
    # clean/test/0000.parquet, clean/test-00000-of-00001.parquet, or all/test.clean-00000-of-00001.parquet
    names = (record.path.parents[1].name, record.path.parent.name, *record.path.name.split("-")[0].split("."))
    part = "other" if "other" in names else "clean"
    return _spoken(f"librispeech-{record.text('id')}", record.text("text"), part, "en", record.medium("audio", "audio"))


def read_librispeech(folder: Path, split: Split) -> Iterable[Item]:
    """``test-clean/SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt`` with ``.flac`` files beside it (also ``test-other``, and under ``LibriSpeech``), or Parquet
    files of the hub (``audio``, ``text``, ``id``). The score is the mean of clean and other, where both are there."""
    name, hub = _names(split)
    published = tuple(f"{under}{name}-*/*/*/*.trans.txt" for under in ("", "LibriSpeech/"))
    parquet = (f"*/{hub}/*.parquet", f"all/{hub}.*.parquet", f"*/{hub}-*.parquet")
    return _items(find_split(folder, split, *published, *parquet), split, _librispeech_published, _librispeech_hub)


LIBRISPEECH = _task("librispeech", read_librispeech, Reported())


def _mls_published(paths: Iterable[Path]) -> Iterator[Item]:
    for path in paths:
        name = path.parents[1].name.removeprefix("mls_").removesuffix("_opus")
        for id, text in _utterances(path, "\t"):
            speaker, _, rest = id.partition("_")
            stem = f"audio/{speaker}/{rest.partition('_')[0]}/{id}"
            audio = inside(path.parent, "audio", f"{stem}.flac", f"{stem}.opus", f"{stem}.wav")
            yield _spoken(f"mls-{name}-{id}", text, name, _mls_language(path, name), audio)


def _mls_language(path: Path, name: str) -> str:
    if name not in _LANGUAGES_OF_MLS:
        raise ValueError(f"{path}: {name} is no language of MLS ({', '.join(_LANGUAGES_OF_MLS)})")
    return _LANGUAGES_OF_MLS[name]


def _mls_hub(record: Record) -> Item:
    name = record.path.parent.name
    audio = record.medium("audio", "audio")
    return _spoken(
        f"mls-{name}-{record.text('id')}", record.text("transcript"), name, _mls_language(record.path, name), audio
    )


def read_mls(folder: Path, split: Split) -> Iterable[Item]:
    """``mls_LANGUAGE/test/transcripts.txt`` with ``audio/SPEAKER/BOOK/ID.flac`` of the publisher, or a folder a language of Parquet files
    (``audio``, ``transcript``, ``id``)."""
    name, _ = _names(split)
    patterns = (f"mls_*/{name}/transcripts.txt", f"*/{name}-*.parquet")
    return _items(find_split(folder, split, *patterns), split, _mls_published, _mls_hub)


MLS = _task("mls", read_mls, Reported(None, 4.8, "English, 0-shot"), "the report's figure is that of English alone")


# ── FLEURS, VoxPopuli ──────────────────────────────────────────────────────────────────────────────────────

_FLEURS_COLUMNS = ("id", "file_name", "raw_transcription", "transcription", "words", "num_samples", "gender")


def _fleurs_published(paths: Iterable[Path], name: str) -> Iterator[Item]:
    for path in paths:
        language = path.parent.name
        for record in records(path, _FLEURS_COLUMNS):
            file = record.text("file_name")
            audio = inside(path.parent, "audio", f"audio/{name}/{file}", f"{name}/{file}")
            yield _spoken(f"fleurs-{language}-{file}", record.text("raw_transcription"), language, language, audio)


def _fleurs_hub(record: Record) -> Item:
    folder = record.path.parent
    language = folder.parent.name if folder.name in ("test", "validation") else folder.name
    audio = record.medium("audio", "audio")
    # Several people read a sentence: its id is none of the recording.
    return _spoken(f"fleurs-{language}-{record.id}", record.text("raw_transcription"), language, language, audio)


def read_fleurs(folder: Path, split: Split) -> Iterable[Item]:
    """``data/LANGUAGE/test.tsv`` with ``audio/test/FILE.wav`` of the publisher, or a folder a language of Parquet files (``audio``,
    ``raw_transcription``). Characters are counted in Chinese, Cantonese, Japanese, Thai, Lao and Burmese."""
    name, hub = _names(split)
    published = (f"data/*/{name}.tsv", f"*/{name}.tsv")
    parquet = (f"*/{hub}-*.parquet", f"*/*-{hub}*.parquet", f"*/{hub}/*.parquet")
    paths = find_split(folder, split, *published, *parquet)
    return _items(paths, split, partial(_fleurs_published, name=name), _fleurs_hub)


FLEURS = _task(
    "fleurs", read_fleurs, Reported(None, 7.6, "62 languages, 0-shot"),
    "the mean of the languages of the folder; the report's 62 languages are not named",
)  # fmt: skip


def _voxpopuli_published(paths: Iterable[Path], name: str) -> Iterator[Item]:
    for path in paths:
        language = path.parent.name
        for record in records(path):
            id = record.text("id")
            audio = inside(path.parent, "audio", f"{name}/{id}.wav", f"{name}/{name}_part_0/{id}.wav")
            yield _spoken(f"voxpopuli-{id}", record.text("normalized_text"), language, language, audio)


def _voxpopuli_hub(record: Record) -> Item:
    language, audio = record.path.parent.name, record.medium("audio", "audio")
    return _spoken(f"voxpopuli-{record.text('audio_id')}", record.text("normalized_text"), language, language, audio)


def read_voxpopuli(folder: Path, split: Split) -> Iterable[Item]:
    """``data/LANGUAGE/asr_test.tsv`` (``id``, ``normalized_text``) with ``test/test_part_0/ID.wav`` as the publisher's archives unpack, or a folder a language of
    Parquet files (``audio_id``, ``audio``, ``normalized_text``)."""
    name, hub = _names(split)
    patterns = (f"data/*/asr_{name}.tsv", f"*/asr_{name}.tsv", f"*/{hub}-*.parquet")
    paths = find_split(folder, split, *patterns)
    return _items(paths, split, partial(_voxpopuli_published, name=name), _voxpopuli_hub)


VOXPOPULI = _task(
    "voxpopuli", read_voxpopuli, Reported(None, 9.1, "14 languages, 0-shot"), "the mean of the languages of the folder"
)


# ── CoVoST 2 ───────────────────────────────────────────────────────────────────────────────────────────────


def _covost_item(language: str, record: Record, id: str, audio: Medium) -> Item:
    facts = {"language": language}
    return Item(
        f"covost2-{language}-{id}",
        "",
        (record.text("translation").strip(),),
        group=language,
        facts=facts,
        media=(audio,),
    )


def _covost_published(paths: Iterable[Path]) -> Iterator[Item]:
    for path in paths:
        language = path.name.split(".")[1].partition("_")[0]
        for record in records(path):
            name = record.text("path")
            clips = [f"{under}clips/{name}{suffix}" for under in (f"{language}/", "") for suffix in ("", ".mp3")]
            yield _covost_item(language, record, name, inside(path.parent, "audio", *clips))


def _covost_hub(record: Record) -> Item:
    language = record.path.parent.name.partition("_")[0]
    return _covost_item(language, record, record.text("id"), record.medium("audio", "audio"))


def read_covost2(folder: Path, split: Split) -> Iterable[Item]:
    """``covost_v2.LANGUAGE_en.test.tsv`` (``path``, ``sentence``, ``translation``) with ``LANGUAGE/clips/`` of Common Voice, or a folder ``LANGUAGE_en`` a language
    of Parquet files (``id``, ``audio``, ``translation``): into English, as in the report."""
    name, hub = _names(split)
    paths = find_split(folder, split, f"covost_v2.*_en.{name}.tsv", f"*_en/{hub}-*.parquet")
    return _items(paths, split, _covost_published, _covost_hub)


COVOST2 = Task(
    "covost2", "audio", read_covost2,
    Form(
        ask=lambda item: f"Translate the speech from {language_name(item.facts['language'].split('-')[0])} into English.",
        answer=lambda item: f" {item.reference}",
        extract=lambda item, output: spoken_text(output), max_tokens=256,
    ),
    Metric("BLEU", scores.sentence_bleu, binary=False, corpus="BLEU", by_group=True), "greedy", 0,
    Reported(None, 40.1, "21 languages, 0-shot"), shots_of_group=True,
    note="the mean of the languages of the folder, into English",
)  # fmt: skip

TASKS = (LIBRISPEECH, MLS, FLEURS, VOXPOPULI, COVOST2)
