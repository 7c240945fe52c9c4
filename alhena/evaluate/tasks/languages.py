"""Translation and summaries in many languages: WMT, FLORES, XLSum, Wikilingua."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from alhena.evaluate.tasks import scores
from alhena.evaluate.tasks.extraction import first_line
from alhena.evaluate.tasks.items import Form, Item, Metric, Reported, Split, Task
from alhena.evaluate.tasks.sources import Record, all_records, find, find_split, has, lines, records

CHRF = Metric("chrF", scores.sentence_chrf, binary=False, corpus="chrF", by_group=True)
ROUGE = Metric("ROUGE-L", scores.rouge_l, binary=False)
# Characters of an article that are asked: more would not fit the context of small models with shots.
MAX_ARTICLE = 6000


def language_name(code: str) -> str:
    """The English name of a language by its code, or the code.

    >>> language_name("de"), language_name("deu_Latn"), language_name("xx")
    ('German', 'German', 'xx')
    """
    # Importing it takes a while.
    from babel import Locale, UnknownLocaleError

    code = code.split("_")[0]
    names = Locale("en").languages
    try:
        return names.get(code) or names.get(Locale.parse(code).language) or code
    except (UnknownLocaleError, ValueError):
        return code


def _translation_form() -> Form:
    return Form(
        ask=lambda item: f"{item.facts['from']}: {item.question}\n{item.facts['to']}:",
        answer=lambda item: f" {item.reference}",
        extract=lambda item, output: first_line(output), max_tokens=256, stop=("\n",),
    )  # fmt: skip


def _pair(pair: tuple[str, str], number: int, source: str, target: str) -> Item:
    facts = {"from": language_name(pair[0]), "to": language_name(pair[1])}
    group = f"{pair[0]}-{pair[1]}"
    return Item(f"{group}-{number}", source.strip(), (target.strip(),), group=group, facts=facts)


def _aligned(pair: tuple[str, str], source: Path, target: Path) -> Iterator[Item]:
    """Two files of a sentence a line. Raises ValueError where their lengths differ."""
    from_lines, to_lines = lines(source), lines(target)
    if len(from_lines) != len(to_lines):
        raise ValueError(
            f"{source} has {len(from_lines):,} lines, {target} {len(to_lines):,}: they must be translations line by line"
        )
    for number, sentences in enumerate(zip(from_lines, to_lines, strict=True)):
        yield _pair(pair, number, *sentences)


def read_wmt(folder: Path, split: Split) -> Iterable[Item]:
    """``NAME.SRC-TGT.src`` with ``.ref`` beside it (as sacrebleu writes them), or the Parquet files of the hub, a folder ``SRC-TGT`` a pair.

    Shots and validation are the first and the other sentences of files whose name begins with ``dev``.
    """
    items: list[Item] = []
    if has(folder, "*.src"):
        paths = [path for path in find(folder, "*.src") if path.name.startswith("dev") == (split != "test")]
        for path in paths:
            source, _, target = path.stem.rpartition(".")[2].partition("-")
            items += _aligned((source, target), path, path.with_suffix(".ref"))
    else:
        hub = "test" if split == "test" else "validation"
        for path in find_split(folder, split, f"*-*/{hub}-*.parquet"):
            source, _, target = path.parent.name.partition("-")
            for record in records(path):
                translation = record.record("translation")
                items.append(_pair((source, target), record.number, translation.text(source), translation.text(target)))
    return items if split == "test" else _shots_of_groups(items, split)


def _shots_of_groups(items: Iterable[Item], split: Split, count: int = 5) -> list[Item]:
    """The first items of each group as shots, the others for validation."""
    groups: dict[str, list[Item]] = {}
    for item in items:
        groups.setdefault(item.group, []).append(item)
    part = slice(0, count) if split == "shots" else slice(count, None)
    return [item for group in groups.values() for item in group[part]]


WMT = Task(
    "wmt", "multilingual", read_wmt, _translation_form(), CHRF, "greedy", 1,
    Reported(74.4, 71.7, "WMT 23, BLEURT"), shots_of_group=True,
    note="the report's figure is BLEURT, which needs a model of its own: chrF does not compare with it",
)  # fmt: skip


def read_flores(folder: Path, split: Split) -> Iterable[Item]:
    """``devtest/LANGUAGE.devtest`` and ``dev/LANGUAGE.dev`` of the publisher, from English to every other language there."""
    name = "devtest" if split == "test" else "dev"
    paths = {path.stem: path for path in find(folder, f"{name}/*.{name}", f"flores200_dataset/{name}/*.{name}")}
    if "eng_Latn" not in paths:
        raise ValueError(f"{folder}: eng_Latn.{name} is not here; translations are asked from it")
    items = [
        item
        for language, path in paths.items()
        if language != "eng_Latn"
        for item in _aligned(("eng_Latn", language), paths["eng_Latn"], path)
    ]
    return items if split == "test" else _shots_of_groups(items, split)


FLORES = Task(
    "flores", "multilingual", read_flores, _translation_form(), CHRF, "greedy", 1,
    Reported(27.0, None, "FLORES-200 and NTREX, languages of few resources, 1-shot chrF"), shots_of_group=True,
    note="all languages of the folder, from English",
)  # fmt: skip


def _summary_form(words: str) -> Form:
    return Form(
        ask=lambda item: f"Article: {item.question[:MAX_ARTICLE]}\n{words}:",
        answer=lambda item: f" {item.reference}",
        extract=lambda item, output: first_line(output), max_tokens=160, stop=("\nArticle:",),
    )  # fmt: skip


def _xlsum_item(record: Record) -> Item:
    language = record.path.stem.rsplit("_", 1)[0] if record.path.suffix == ".jsonl" else record.path.parent.name
    id = record.text("id") if record.has("id") else str(record.number)
    return Item(f"xlsum-{language}-{id}", record.text("text"), (record.text("summary"),), group=language)


def read_xlsum(folder: Path, split: Split) -> Iterable[Item]:
    """``LANGUAGE_test.jsonl`` of the publisher, or a folder a language of Parquet files."""
    name = {"test": "test", "validation": "val", "shots": "train"}[split]
    hub = "validation" if name == "val" else name
    patterns = (f"*_{name}.jsonl", f"*/*_{name}.jsonl", f"*/{hub}-*.parquet")
    items = map(_xlsum_item, all_records(find_split(folder, split, *patterns)))
    return _shots_of_groups(items, split) if split == "shots" else items


XLSUM = Task(
    "xlsum", "multilingual", read_xlsum, _summary_form("Summary"), ROUGE, "greedy", 3,
    Reported(17.6, 16.2, "3-shot, ROUGE-L"), shots_of_group=True,
    note=f"articles are asked up to {MAX_ARTICLE:,} characters; words of ROUGE are those of all scripts",
)  # fmt: skip


def _wikilingua_item(record: Record) -> Item:
    language = (
        record.path.parent.name if record.path.suffix == ".parquet" else record.path.stem.split(".")[0].split("_")[0]
    )
    if record.has("source"):
        article, summary = record.text("source"), record.text("target")
    else:
        inner = record.record("article")
        article, summary = " ".join(inner.texts("document")), " ".join(inner.texts("summary"))
    return Item(f"wikilingua-{language}-{record.id}", article, (summary,), group=language)


def read_wikilingua(folder: Path, split: Split) -> Iterable[Item]:
    """JSON lines with ``source`` and ``target`` (as GEM publishes it), or the Parquet files of the hub, whose one split is asked but
    for the shots."""
    name = {"test": "test", "validation": "val", "shots": "train"}[split]
    hub = "validation" if name == "val" else name
    patterns, only = (f"*{name}*.jsonl", f"*/{hub}-*.parquet"), "*/train-*.parquet"
    if split == "test" and not has(folder, *patterns) and has(folder, only):
        return _shots_of_groups(map(_wikilingua_item, all_records(find(folder, only))), "validation")
    items = map(_wikilingua_item, all_records(find_split(folder, split, *patterns)))
    return _shots_of_groups(items, split) if split == "shots" else items


WIKILINGUA = Task(
    "wikilingua", "multilingual", read_wikilingua, _summary_form("Summary in one paragraph"), ROUGE, "greedy", 3,
    Reported(48.9, 47.8, "3-shot, BLEURT"), shots_of_group=True,
    note="the report's figure is BLEURT, which needs a model of its own: ROUGE-L does not compare with it",
)  # fmt: skip

TASKS = (WMT, FLORES, XLSUM, WIKILINGUA)
