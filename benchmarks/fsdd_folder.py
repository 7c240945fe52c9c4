"""Spoken digits of real people (Free Spoken Digit Dataset, CC BY-SA 4.0) as two folders for `alhena curate`.

python benchmarks/fsdd_folder.py fsdd_4speakers.tar OUT --held-out theo
OUT/tune/manifest.jsonl        all other speakers
OUT/held_out/manifest.jsonl    the speaker that tuning never hears
"""

from __future__ import annotations

import json
import re
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
NAME = re.compile(r"(\d)_([a-z]+)_(\d+)\.wav")
MOST_BYTES = 1 << 20


@dataclass(frozen=True)
class Split:
    archive: Annotated[Path, tyro.conf.Positional]  # a tar with files DIGIT_SPEAKER_TAKE.wav
    out: Annotated[Path, tyro.conf.Positional]
    held_out: str = "theo"  # the speaker to hold out


def main(split: Split) -> None:
    """Copies the regular files that bear such a name, nothing else, and writes both manifests."""
    lines: dict[str, list[str]] = {"tune": [], "held_out": []}
    with tarfile.open(split.archive) as archive:
        for member in archive:
            match = NAME.fullmatch(Path(member.name).name)
            if not match or not member.isfile() or member.size > MOST_BYTES:
                continue
            digit, speaker, _ = match.groups()
            where = "held_out" if speaker == split.held_out else "tune"
            file = archive.extractfile(member)
            assert file is not None  # regular files have content
            (split.out / where).mkdir(parents=True, exist_ok=True)
            (split.out / where / match[0]).write_bytes(file.read())
            line = {
                "audio": match[0],
                "question": "Transcribe.",
                "answer": WORDS[int(digit)],
                "language": "en",
                "source": "fsdd",
            }
            lines[where].append(json.dumps(line))
    if not all(lines.values()):
        raise SystemExit(f"{split.archive}: no recordings of {split.held_out!r}, or of anybody else; nothing to split")
    for where, some in lines.items():
        (split.out / where / "manifest.jsonl").write_text("\n".join(some) + "\n")
        print(f"{split.out / where}: {len(some)} recordings")


if __name__ == "__main__":
    main(tyro.cli(Split, description=__doc__))
