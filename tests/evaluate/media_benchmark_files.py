"""Small files in the public layouts of the benchmarks with captions, videos and speech; for each layout a function that writes it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.evaluate import image_benchmark_files as images
from tests.evaluate.benchmark_files import jsonl, parquet, shard, text
from tests.evaluate.image_benchmark_files import audio, cell, file, image, json_file, video

# ── captions, videos ───────────────────────────────────────────────────────────────────────────────────────

CAPTIONS = {
    "en": [["a red house by the river", "the house is red"], ["two dogs run on grass"], ["a man eats bread"]],
    "th": [["บ้านสีแดง"], ["หมาวิ่ง"], ["คนกินขนมปัง"]],
}


def xm3600(folder: Path) -> None:
    rows = []
    for n in range(3):
        captions = {
            language: {"caption": texts[n], "caption/tokenized": texts[n]} for language, texts in CAPTIONS.items()
        }
        rows.append({"image/key": f"k{n}", "image/locale": "th"} | captions)
        file(folder / "images" / f"k{n}.jpg", image(n, "JPEG"))
    jsonl(folder / "captions.jsonl", rows)


def xm3600_hub(folder: Path) -> None:
    for language, texts in CAPTIONS.items():
        rows = [
            {"image_id": f"k{n}", "image_locale": "th", "captions": t, "image": {"bytes": image(n)}}
            for n, t in enumerate(texts)
        ]
        parquet(folder / "data" / shard(language), rows)


CHINESE = ["一个人在跑步", "两只狗睡觉", "红色的房子"]


def _vatex(folder: Path, names: Sequence[str]) -> None:
    rows = [{"videoID": f"v{n}_000001_000011", "enCap": CAPTIONS["en"][n], "chCap": [CHINESE[n]]} for n in range(3)]
    for name in names:
        json_file(folder / name, rows)
    for n in range(3):
        file(folder / "videos" / f"v{n}_000001_000011.mp4", video(n))


def vatex(folder: Path) -> None:
    _vatex(folder, ["vatex_public_test_english_v1.1.json", "vatex_training_v1.0.json"])


def vatex_zh(folder: Path) -> None:
    _vatex(folder, ["vatex_validation_v1.0.json"])


def youcook2(folder: Path) -> None:
    def annotations(words: str) -> list[dict[str, Any]]:
        return [
            {"segment": [0, 1], "id": 0, "sentence": f"boil {words}"},
            {"segment": [1, 3], "id": 1, "sentence": f"fry {words}"},
        ]

    database = {
        f"y{n}": {"subset": subset, "recipe_type": "113", "duration": 2.0, "annotations": annotations(words)}
        for n, (subset, words) in enumerate(
            (("validation", "the eggs"), ("validation", "some rice"), ("training", "fish"))
        )
    }
    json_file(folder / "youcookii_annotations_trainval.json", {"database": database})
    for n, subset in enumerate(("validation", "validation", "training")):
        file(folder / "raw_videos" / subset / "113" / f"y{n}.mp4", video(n))


def youcook2_hub(folder: Path) -> None:
    rows = [
        {"youtube_id": f"y{n}", "video_path": f"val/113/y{n}.mp4", "segment": [0, 1], "sentence": sentence}
        for n, sentence in enumerate(("boil the eggs", "fry some rice"))
    ]
    parquet(folder / "data" / shard("val"), rows)
    for n in range(2):
        file(folder / "YouCookIIVideos" / "val" / "113" / f"y{n}.mp4", video(n))


def _nextqa_rows() -> list[dict[str, Any]]:
    options = {f"a{i}": f"{word}." for i, word in enumerate(("sit", "run", "take a hat", "clap", "walk"))}
    return [
        {"video": 42 + n, "frame_count": 4, "width": 16, "height": 16, "question": "what did he do", "answer": n, "qid": n, "type": "TN", **options}
        for n in range(5)
    ]  # fmt: skip


def nextqa(folder: Path) -> None:
    rows = _nextqa_rows()
    for split in ("test", "train"):
        csv = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
        text(folder / f"{split}.csv", "\n".join(csv) + "\n")
    json_file(folder / "map_vid_vidorID.json", {str(42 + n): f"11/{42 + n}" for n in range(5)})
    for n in range(5):
        file(folder / "NExTVideo" / "11" / f"{42 + n}.mp4", video(n % 3))


def nextqa_hub(folder: Path) -> None:
    parquet(folder / "MC" / shard("test"), [row | {"qid": str(row["qid"])} for row in _nextqa_rows()])
    for n in range(5):
        file(folder / "NExTVideo" / f"{42 + n}.mp4", video(n % 3))


ACTIVITIES = [("is the dog brown", "yes", 3), ("how many people", "2", 8), ("what is he doing", "playing guitar", 0)]


def activitynetqa(folder: Path) -> None:
    for split in ("test", "train"):
        names = [f"{split}{n}" for n in range(3)]
        questions = [
            {"video_name": v, "question": q, "question_id": f"{v}_0"}
            for v, (q, _, _) in zip(names, ACTIVITIES, strict=True)
        ]
        answers = [
            {"answer": a, "type": t, "question_id": f"{v}_0"} for v, (_, a, t) in zip(names, ACTIVITIES, strict=True)
        ]
        json_file(folder / f"{split}_q.json", questions)
        json_file(folder / f"{split}_a.json", answers)
        for n, name in enumerate(names):
            file(folder / "all_test" / f"v_{name}.mp4", video(n))


def activitynetqa_hub(folder: Path) -> None:
    rows = [
        {"video_name": f"n{n}", "question_id": f"n{n}_0", "question": q, "answer": a, "type": str(t)}
        for n, (q, a, t) in enumerate(ACTIVITIES)
    ]
    parquet(folder / "data" / shard("test"), rows)
    for n in range(3):
        file(folder / "all_test" / f"v_n{n}.mp4", video(n))


def perception_test(folder: Path) -> None:
    questions = [
        {"id": n, "question": f"Where is {n}?", "options": ["left", "right", "on top"], "answer_id": n, "area": "physics", "tag": []}
        for n in range(3)
    ]  # fmt: skip
    for name in ("valid", "train"):
        json_file(folder / f"mc_question_{name}.json", {"video_5": {"metadata": {}, "mc_question": questions}})
    file(folder / "videos" / "video_5.mp4", video(0))


def perception_test_hub(folder: Path) -> None:
    rows = [
        {"video_name": "video_5", "question_id": str(n), "question": "?", "options": ["a", "b", "c"], "answer_id": str(n), "area": "physics"}
        for n in range(3)
    ]  # fmt: skip
    parquet(folder / "mc_question_val" / shard("validation"), rows)
    file(folder / "videos" / "video_5.mp4", video(0))


# ── speech, combinations, generated images ─────────────────────────────────────────────────────────────────

SENTENCES = ["MISTER SMITH PAID TWENTY DOLLARS", "HE IS NOT HERE"]


def librispeech(folder: Path) -> None:
    for part in ("test-clean", "test-other", "dev-clean", "dev-other"):
        under, ids = folder / part / "12" / "34", [f"12-34-{n:04}" for n in range(2)]
        ids = [f"{part}{id}" for id in ids]
        text(under / "12-34.trans.txt", "".join(f"{id} {s}\n" for id, s in zip(ids, SENTENCES, strict=True)))
        for n, id in enumerate(ids):
            file(under / f"{id}.flac", audio(n + 2 * part.endswith("other")))


def librispeech_hub(folder: Path) -> None:
    for part in ("clean", "other"):
        for split in ("test", "validation"):
            rows = [
                {"id": f"{part}-{n}", "text": s, "audio": cell(audio(n)), "speaker_id": 1}
                for n, s in enumerate(SENTENCES)
            ]
            parquet(folder / part / split / "0000.parquet", rows)


def mls(folder: Path) -> None:
    for language, sentence in (("german", "guten morgen anna"), ("polish", "dzień dobry")):
        for split in ("test", "dev"):
            under = folder / f"mls_{language}" / split
            text(under / "transcripts.txt", f"7_8_000001\t{sentence}\n7_8_000002\t{sentence} ja\n")
            for n in (1, 2):
                file(under / "audio" / "7" / "8" / f"7_8_00000{n}.flac", audio(n))


def mls_hub(folder: Path) -> None:
    rows = [{"id": f"7_8_{n}", "transcript": "guten morgen anna", "audio": cell(audio(n))} for n in range(2)]
    for split in ("test", "dev"):
        parquet(folder / "german" / shard(split), rows)


SPOKEN = {
    "en_us": ["Mr. Smith paid $20.", "It's 5 o'clock."],
    "cmn_hans_cn": ["你好，世界。", "早上好！"],
    "de_de": ["Grüß Gott, Anna!", "Ja."],
}


def fleurs(folder: Path) -> None:
    for language, sentences in SPOKEN.items():
        for split in ("test", "dev"):
            rows = [f"{n}\t{n}7.wav\t{s}\t{s.lower()}\t{'|'.join(s)}\t1600\tMALE" for n, s in enumerate(sentences)]
            text(folder / "data" / language / f"{split}.tsv", "\n".join(rows) + "\n")
            for n in range(2):
                file(folder / "data" / language / "audio" / split / f"{n}7.wav", audio(n, "WAV"))


def fleurs_hub(folder: Path) -> None:
    for language, sentences in SPOKEN.items():
        rows = [
            {"id": 5, "raw_transcription": s, "audio": cell(audio(n)), "lang_id": 1} for n, s in enumerate(sentences)
        ]
        parquet(folder / language / "test" / "0000.parquet", rows)


def voxpopuli(folder: Path) -> None:
    for language in ("de", "en"):
        for split in ("test", "dev"):
            header = "id\traw_text\tnormalized_text\tspeaker_id\tsplit\tgender\tis_gold_transcript\taccent"
            rows = [f"{language}{n}\tGuten Tag.\tguten tag {n}\t1\t{split}\tmale\tTrue\tNone" for n in range(2)]
            text(folder / "data" / language / f"asr_{split}.tsv", "\n".join((header, *rows)) + "\n")
            for n in range(2):
                file(folder / "data" / language / split / f"{split}_part_0" / f"{language}{n}.wav", audio(n, "WAV"))


def voxpopuli_hub(folder: Path) -> None:
    rows = [{"audio_id": f"a{n}", "normalized_text": f"guten tag {n}", "audio": cell(audio(n))} for n in range(2)]
    parquet(folder / "de" / shard("test"), rows)


ENGLISH = ["Good morning, how are you today?", "The house by the river is red."]


def covost2(folder: Path) -> None:
    for language in ("de", "zh-CN"):
        for split in ("test", "dev"):
            rows = [f"clip{n}.mp3\tGuten Morgen.\t{e}\tc" for n, e in enumerate(ENGLISH)]
            content = "\n".join(("path\tsentence\ttranslation\tclient_id", *rows)) + "\n"
            text(folder / f"covost_v2.{language}_en.{split}.tsv", content)
        for n in range(2):
            file(folder / language / "clips" / f"clip{n}.mp3", audio(n))


def covost2_hub(folder: Path) -> None:
    rows = [
        {"id": f"c{n}", "sentence": "Guten Morgen.", "translation": e, "audio": cell(audio(n))}
        for n, e in enumerate(ENGLISH)
    ]
    for split in ("test", "validation"):
        parquet(folder / "de_en" / shard(split), rows)


def combinations(folder: Path) -> None:
    rows = [
        {"id": "1", "parts": [{"image": "a.png"}, {"audio": "b.flac"}, {"text": "Answer the question."}], "answers": ["red", "crimson"]},
        {"parts": [{"text": "After "}, {"video": "v/c.mp4"}, {"text": " and "}, {"image": "a.png"}, {"text": ": which?"}], "answers": ["up"], "choices": ["up", "down"], "group": "video"},
    ]  # fmt: skip
    jsonl(folder / "test.jsonl", rows)
    jsonl(folder / "shots.jsonl", [rows[0] | {"id": "shot"}])
    file(folder / "a.png", image(1))
    file(folder / "b.flac", audio(1))
    file(folder / "v" / "c.mp4", video(1))


def image_generation(folder: Path) -> None:
    rows = [
        {"prompt": "Draw a red circle.", "judge": "color and shape", "expected": "red circle"},
        {"prompt": "Draw the digit 7.", "judge": "digit", "expected": "7"},
    ]
    jsonl(folder / "prompts.jsonl", rows)


MEDIA_LAYOUTS: dict[str, list[Callable[[Path], None]]] = {
    "vqav2": [images.vqav2, images.vqav2_hub], "textvqa": [images.textvqa, images.textvqa_hub], "docvqa": [images.docvqa, images.docvqa_hub],
    "infographicvqa": [images.infographicvqa, images.infographicvqa_hub], "chartqa": [images.chartqa, images.chartqa_hub], "ai2d": [images.ai2d, images.ai2d_hub], "mmmu": [images.mmmu],
    "mathvista": [images.mathvista, images.mathvista_hub], "nlvr": [images.nlvr], "nlvr2": [images.nlvr2], "xm3600": [xm3600, xm3600_hub], "vatex": [vatex],
    "vatex_zh": [vatex_zh], "youcook2": [youcook2, youcook2_hub], "nextqa": [nextqa, nextqa_hub],
    "activitynetqa": [activitynetqa, activitynetqa_hub], "perception_test": [perception_test, perception_test_hub],
    "image_generation": [image_generation], "librispeech": [librispeech, librispeech_hub], "mls": [mls, mls_hub],
    "fleurs": [fleurs, fleurs_hub], "voxpopuli": [voxpopuli, voxpopuli_hub], "covost2": [covost2, covost2_hub],
    "combinations": [combinations],
}  # fmt: skip
