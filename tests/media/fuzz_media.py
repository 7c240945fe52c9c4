"""Damages media files at random and decodes them in worker processes with limited memory and time.

    python -m tests.media.fuzz_media --count 100000 --seed 0 --jobs 1

Each item is a small file of some kind, mutated (bits flipped, bytes overwritten, cut, spliced with another, sizes and fields of
headers replaced); a number and a seed make the same item again: ``--first 4711 --count 1``. A decoder may return or raise
ValueError of one line without an address; anything else is reported: other exceptions, hangs, processes that die.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import selectors
import subprocess
import sys
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tests.media.inputs import seeds

ADDRESS_SPACE = 4 << 30
# Seconds of processor time that an item may take; the files are a few kB.
MAX_SECONDS = 20.0
# Sizes and counts that are often wrong in headers.
NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFFFFFE)


def mutated(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """A few random changes; half of them within the first 512 bytes, where headers are."""
    out = bytearray(data)
    for _ in range(1 + int(rng.geometric(0.5))):
        if not out:
            break
        kind = rng.integers(0, 8)
        at = int(rng.integers(0, min(len(out), 512) if rng.random() < 0.5 else len(out)))
        if kind <= 1:
            out[at] ^= 1 << int(rng.integers(0, 8))
        elif kind == 2:
            out[at : at + int(rng.integers(1, 9))] = rng.bytes(int(rng.integers(1, 9)))
        elif kind == 3:
            size = int(rng.choice([1, 2, 4, 8]))
            order = "big" if rng.random() < 0.5 else "little"
            value = int(rng.choice(NUMBERS)) & ((1 << 8 * size) - 1)
            out[at : at + size] = value.to_bytes(size, order)
        elif kind == 4:
            del out[at:]
        elif kind == 5:
            del out[at : at + int(rng.integers(1, 64))]
        elif kind == 6:
            start = int(rng.integers(0, max(1, len(other))))
            out[at:at] = other[start : start + int(rng.integers(1, 256))]
        else:
            start, size = int(rng.integers(0, len(out))), int(rng.integers(1, 128))
            out[at:at] = out[start : start + size]
    return bytes(out)


def item(number: int, seed: int) -> tuple[str, bytes]:
    """The name of a seed file and its damaged bytes."""
    files = seeds()
    names, rng = sorted(files), np.random.default_rng((seed, number))
    name = names[number % len(names)]
    other = files[names[int(rng.integers(0, len(names)))]]
    damaged = mutated(files[name], other, rng)
    return name, with_checksums(damaged) if rng.random() < 0.7 else damaged


def with_checksums(data: bytes) -> bytes:
    """A PNG with the checksums that its chunks ought to have, so that damage inside them is not refused at once."""
    if not data.startswith(b"\x89PNG"):
        return data
    out, at = bytearray(data), 8
    while at + 12 <= len(out):
        end = at + 8 + int.from_bytes(out[at : at + 4], "big")
        if end + 4 <= len(out):
            out[end : end + 4] = zlib.crc32(out[at + 4 : end]).to_bytes(4, "big")
        at = end + 4
    return bytes(out)


def outcome(kind: str, data: bytes) -> str:
    """ "decoded", "refused", or a description of the fault."""
    from alhena.media import decode_audio, decode_image, decode_video
    from alhena.media.limits import MediaError

    try:
        {"image": decode_image, "audio": decode_audio, "video": lambda d: decode_video(d, 4)}[kind](data)
    except ValueError as error:
        message = str(error)
        if (
            not isinstance(error, MediaError)
            or "\n" in message
            or " at 0x" in message
            or not re.match(r"the (image|audio|video|file)", message)
        ):
            return f"message: {type(error).__name__}: {message[:200]}"
        return "refused"
    except BaseException as error:
        import traceback

        last = traceback.extract_tb(error.__traceback__)[-1]
        return (
            f"traceback: {type(error).__name__}: {str(error)[:100]} ({last.filename.rsplit('/', 1)[-1]}:{last.lineno})"
        )
    return "decoded"


def work(seed: int) -> None:
    """A worker: reads numbers of items, writes a line of JSON for each."""
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    out = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    for line in sys.stdin:
        name, data = item(int(line), seed)
        started = time.process_time()
        found = outcome(name.split("/")[0], data)
        seconds = time.process_time() - started
        if seconds > MAX_SECONDS:
            found = f"slow: {seconds:.0f} s"
        print(json.dumps([int(line), name, found]), file=out, flush=True)


@dataclass
class Worker:
    """A worker process and the item it is at."""

    process: subprocess.Popen[str]
    number: int = -1
    since: float = 0.0

    @classmethod
    def start(cls, seed: int) -> Worker:
        command = [sys.executable, "-m", "tests.media.fuzz_media", "--worker", "--seed", str(seed)]
        pipe = subprocess.PIPE
        return cls(subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True))

    def send(self, number: int) -> None:
        assert self.process.stdin is not None
        self.number, self.since = number, time.monotonic()
        self.process.stdin.write(f"{number}\n")
        self.process.stdin.flush()

    def wait(self) -> list[object]:
        """The outcome of the item, or of the process if it hangs or dies."""
        with selectors.DefaultSelector() as selector:
            assert self.process.stdout is not None
            selector.register(self.process.stdout, selectors.EVENT_READ)
            # A busy machine gives less than one processor.
            ready = selector.select(10 * MAX_SECONDS)
        line = self.process.stdout.readline() if ready else ""
        if line:
            return json.loads(line)
        self.process.kill()
        died = "hang" if not ready else f"died: exit code {self.process.wait()}"
        return [self.number, item(self.number, 0)[0], died]


def run(first: int, count: int, seed: int) -> Iterator[tuple[int, str, str]]:
    """(number, name, outcome) of each item; a worker that hangs or dies is replaced."""
    worker = Worker.start(seed)
    for number in range(first, first + count):
        if worker.process.poll() is not None:
            worker = Worker.start(seed)
        worker.send(number)
        yield tuple(worker.wait())  # type: ignore[misc]
    assert worker.process.stdin is not None
    worker.process.stdin.close()
    worker.process.wait()


def report(first: int, count: int, seed: int) -> int:
    """Prints each fault when it is found, progress, and the counts; the number of faults."""
    counts: Counter[str] = Counter()
    for number, name, found in run(first, count, seed):
        counts[found if found in ("decoded", "refused") else "faults"] += 1
        if found not in ("decoded", "refused"):
            print(f"{number} {name}: {found}", flush=True)
        if sum(counts.values()) % 5000 == 0:
            print(f"after {sum(counts.values()):,} (seed {seed}, from {first}): {dict(counts)}", flush=True)
    print(f"{count:,} items, seed {seed}, from {first}: {dict(counts)}", flush=True)
    return counts["faults"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options.seed)
        return 0
    from concurrent.futures import ThreadPoolExecutor

    each = -(-options.count // options.jobs)
    parts = [(options.first + i * each, min(each, options.count - i * each)) for i in range(options.jobs)]
    with ThreadPoolExecutor(options.jobs) as pool:
        faults = sum(pool.map(lambda part: report(*part, options.seed), [p for p in parts if p[1] > 0]))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
