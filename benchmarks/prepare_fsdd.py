"""Human speech for `alhena curate`: the Free Spoken Digit Dataset (CC BY-SA 4.0) as two folders, split by speaker.

python benchmarks/prepare_fsdd.py fsdd_4speakers.tar OUT --held-out theo
OUT/tune/manifest.jsonl        all other speakers
OUT/held_out/manifest.jsonl    the speaker that is not in the tuning data
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
MAX_BYTES = 1 << 20


@dataclass(frozen=True)
class Split:
    archive: Annotated[Path, tyro.conf.Positional]  # a tar with files DIGIT_SPEAKER_TAKE.wav
    out: Annotated[Path, tyro.conf.Positional]
    held_out: str = "theo"  # the speaker to hold out


def main(split: Split) -> None:
    """Copies the regular files with such a name and no others, and writes both manifests."""
    lines: dict[str, list[str]] = {"tune": [], "held_out": []}
    with tarfile.open(split.archive) as archive:
        for member in archive:
            match = NAME.fullmatch(Path(member.name).name)
            if not match or not member.isfile() or member.size > MAX_BYTES:
                continue
            digit, speaker, _ = match.groups()
            part = "held_out" if speaker == split.held_out else "tune"
            file = archive.extractfile(member)
            # Regular files have content.
            assert file is not None
            (split.out / part).mkdir(parents=True, exist_ok=True)
            (split.out / part / match[0]).write_bytes(file.read())
            line = {
                "audio": match[0],
                "question": "Transcribe.",
                "answer": WORDS[int(digit)],
                "language": "en",
                "source": "fsdd",
            }
            lines[part].append(json.dumps(line))
    if not all(lines.values()):
        raise SystemExit(
            f"{split.archive}: no recordings of {split.held_out!r}, or of no other speaker; nothing to split"
        )
    for part, manifest in lines.items():
        (split.out / part / "manifest.jsonl").write_text("\n".join(manifest) + "\n")
        print(f"{split.out / part}: {len(manifest)} recordings")


if __name__ == "__main__":
    main(tyro.cli(Split, description=__doc__))
