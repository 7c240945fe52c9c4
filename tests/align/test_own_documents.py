"""Fine-tuning on a user's documents: long audio and several images are used, and the validation loss of the run is measured."""

from __future__ import annotations

from dataclasses import replace

import pytest

from alhena.align.sft import Tune, training, validation_nats
from alhena.content import Content, Document, Text
from alhena.files import copy_atomically
from alhena.model.storage.weights import save_model
from alhena.tokens.encoders import IMAGE_FILES
from alhena.tokens.examples.loader import Batches, left_out
from alhena.tokens.examples.padding import BatchShape
from alhena.tokens.examples.store import Examples, write_examples
from tests.conftest import random_audio, random_image

INNER = {"patches": (192,), "frames": (128, 128)}
T = Tune(2, BatchShape(batch_size=16, tokens=256, patches=256, chunks=2))


def test_long_audio_and_several_images_are_used(encoder, tmp_path):
    answer, ask = Content("model", (Text("red"),)), Text("What?")
    images = random_image(1, 128, 128), random_image(2, 128, 128)
    prompts = [(random_audio(1, 4.0), ask), (random_audio(2, 20.0), ask), (*images, ask), (ask,)]
    documents = [Document((Content("user", parts), answer), str(i), "mine") for i, parts in enumerate(prompts)]
    how = T.encoding(tmp_path)
    examples = [e for d in documents for e in encoder.encode(d, how.max_tokens, window=how.window)]
    assert [(len(e.patches), len(e.frames)) for e in examples] == [(0, 4), (0, 16), (512, 0), (0, 0)]
    write_examples(tmp_path / "mine.arrow", examples, INNER)
    shape = training(T, tmp_path, 0.1).shape
    sources = {"mine": Examples(tmp_path / "mine.arrow")}
    assert left_out(sources, shape) == {}
    batch = next(Batches(sources, {"mine": 1.0}, shape, seed=0))
    assert batch.frames.shape[1] >= 16
    assert batch.patches.shape[1] >= 512


def test_running_text_is_split_at_a_sequence_of_the_recipe_and_chats_are_not(encoder, tmp_path):
    how, words = T.encoding(tmp_path), Text("forty seven circles " * 300)
    prose = Document((Content("document", (words,)),), "0", "mine")
    chat = Document((Content("user", (Text("Write."),)), Content("model", (words,))), "1", "mine")
    assert 250 < max(len(e.tokens) for e in encoder.encode(prose, how.max_tokens, window=how.window)) <= 256
    (example,) = encoder.encode(chat, how.max_tokens, window=how.window)
    assert len(example.tokens) > 256
    endless = replace(chat, contents=(chat.contents[0], Content("model", (words,) * 20)))
    with pytest.raises(ValueError, match="tokens; at most 4096 fit"):
        encoder.encode(endless, how.max_tokens, window=how.window)


def test_the_validation_loss_of_the_run_requires_equal_tokenizers(tiny, encoder, documents, tmp_path):
    model, tokens = tmp_path / "models" / "mine", tmp_path / "tokens"
    save_model(model, *tiny, {})
    for folder in (model, tokens):
        encoder.save(folder)
        for name in IMAGE_FILES:
            (folder / name).write_bytes(b"the same")
    examples = [e for d in documents for e in encoder.encode(d, 256)]
    write_examples(tokens / "validation" / "some.arrow", examples, INNER)
    shape = BatchShape(2, 128, 96, 4)
    losses = validation_nats(model, shape)
    assert list(losses) == ["some"]
    assert losses["some"] > 1
    (tokens / "image_tokenizer.safetensors").write_bytes(b"another")
    assert validation_nats(model, shape) == {}
    copy_atomically(model / "model.json", tmp_path / "alone" / "model.json")
    assert validation_nats(tmp_path / "alone", shape) == {}
