"""Files that try to exhaust memory: each is tried in a process of its own with a limited address space."""

from __future__ import annotations

import struct
import subprocess
import sys
import threading
import time
import zlib

import pytest
from PIL import Image as Pillow

from alhena.media import limits
from tests.media.inputs import (
    chunk,
    clip,
    encoded_sound,
    gray_frames,
    motion_jpeg,
    patched_stsz,
    png,
    saved,
    silent_flac,
    silent_matroska,
    tone,
)

# GiB of address space, of which the libraries take one.
ADDRESS_SPACE = 4
CHILD = f"""
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, ({ADDRESS_SPACE} << 30, {ADDRESS_SPACE} << 30))
from alhena.media import decode_audio, decode_image, decode_video

def peak():
    return next(int(line.split()[1]) >> 10 for line in open("/proc/self/status") if line.startswith("VmHWM"))

decode = {{"image": decode_image, "audio": decode_audio, "video": lambda data: decode_video(data, 8)}}[sys.argv[1]]
data, before = sys.stdin.buffer.read(), peak()
try:
    decode(data)
    result = "decoded"
except ValueError as error:
    result = str(error)
print(peak() - before, result)
"""


def tried(kind: str, data: bytes) -> tuple[int, str]:
    """Peak memory of decoding in MiB, and the result or the message of the error."""
    child = subprocess.run([sys.executable, "-c", CHILD, kind], input=data, capture_output=True, timeout=120)
    assert child.returncode == 0, child.stderr.decode()[-2000:]
    megabytes, result = child.stdout.decode().strip().split(" ", 1)
    return int(megabytes), result


def flat_png(side: int, color: int, channels: int) -> bytes:
    """A PNG of zeros: 8,000 by 8,000 pixels of RGBA are 0.2 MB."""
    packer = zlib.compressobj(1)
    rows = b"".join(packer.compress(bytes(1 + side * channels)) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 8, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


IMAGES = {
    "RGBA": (lambda: flat_png(8000, 6, 4), 400),
    "16 bits": (lambda: png(8000, 8000, 16, 0, bytes(16001 * 8000)), 400),
    "progressive JPEG": (lambda: saved(Pillow.new("RGB", (8000, 8000)), "JPEG", progressive=True), 400),
    "WebP of 16 million": (lambda: saved(Pillow.new("RGBA", (4000, 4000)), "WEBP", method=0), 400),
}


@pytest.mark.parametrize("name", IMAGES)
def test_a_large_image_is_decoded_in_bounded_memory(name: str) -> None:
    make, limit = IMAGES[name]
    megabytes, result = tried("image", make())
    assert result == "decoded" and megabytes < limit


SOUNDS = {
    "FLAC of 8 channels at 192 kHz": (lambda: silent_flac(192_000, 8, 120), "decoded"),
    "FLAC at 655 kHz": (lambda: silent_flac(655_350, 8, 100), "655,350 samples a second"),
    "an hour of silence in Matroska": (lambda: silent_matroska(1), "lasts more than 600 s"),
    "a table of 170 million samples": (
        lambda: patched_stsz(encoded_sound(tone(), 16000, "ipod", "aac"), 1, 170_000_000),
        "the audio",
    ),
}


@pytest.mark.parametrize("name", SOUNDS)
def test_audio_that_expands_takes_bounded_memory(name: str) -> None:
    make, message = SOUNDS[name]
    megabytes, result = tried("audio", make())
    assert message in result and megabytes < 150


CLIPS = {
    "430 frames of 4096x2304": (lambda: motion_jpeg(4096, 2304, 430), "4,000,000,000 pixels in all"),
    "a frame of 8000x8000": (lambda: motion_jpeg(8000, 8000, 2), "or more than 9,437,184 pixels"),
    "a table of 170 million samples": (lambda: patched_stsz(clip(gray_frames(6)), 1, 170_000_000), "the video"),
}


@pytest.mark.parametrize("name", CLIPS)
def test_a_video_that_expands_is_refused_in_bounded_memory(name: str) -> None:
    make, message = CLIPS[name]
    megabytes, result = tried("video", make())
    assert message in result and megabytes < 400


def test_large_media_are_decoded_one_at_a_time_and_small_ones_are_not_held_up() -> None:
    inside, maximum, order = 0, 0, threading.Lock()

    def large() -> None:
        nonlocal inside, maximum
        with limits.one_large_at_a_time(limits.LARGE):
            with order:
                inside += 1
                maximum = max(maximum, inside)
            time.sleep(0.02)
            with order:
                inside -= 1

    threads = [threading.Thread(target=large) for _ in range(4)]
    for thread in threads:
        thread.start()
    with limits.one_large_at_a_time(limits.LARGE - 1):
        pass
    for thread in threads:
        thread.join()
    assert maximum == 1


LIMITED = """
import jax, jax.numpy as jnp, numpy as np
from alhena.media import limit_memory
jax.jit(lambda a: a @ a)(jnp.ones((256, 256))).block_until_ready()
limit_memory(1 << 30)
try:
    np.ones(1 << 28)
except MemoryError:
    print("numpy refused")
try:
    jnp.ones(1 << 29).block_until_ready()
except jax.errors.JaxRuntimeError as error:
    print("jax refused", "RESOURCE_EXHAUSTED" in str(error))
print(float(jax.jit(lambda a: (a @ a).sum())(jnp.ones((128, 128)))))
"""


def test_a_process_with_a_memory_limit_refuses_large_arrays_and_lives() -> None:
    child = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True, timeout=120)
    assert child.stdout.splitlines() == ["numpy refused", "jax refused True", "2097152.0"], child.stderr[-2000:]
