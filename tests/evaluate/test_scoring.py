"""Scores of running text are those of the logits that the model gives, final softcap included."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alhena.content import Content, Document, Text
from alhena.evaluate.scoring import WINDOW_TOKENS, text_loss
from alhena.model import config, image_tokenizer, model
from alhena.serve.engine import Engine, ImageDecoder
from alhena.tokens.examples.padding import padded_batch


def test_nats_are_those_of_the_capped_logits(tiny, encoder):
    params, c = tiny
    c = replace(c, decoder=replace(c.decoder, final_logit_softcap=0.5))
    image = config.ImageTokenizer((16,), (4,), 8)
    engine = Engine(params, c, encoder, ImageDecoder(image_tokenizer.init(jax.random.key(0), image), image), "tiny")
    document = Document((Content("document", (Text("Draw a blue star. x 12 y 34"),)),), "0", "mine")
    nats = text_loss(engine, [document]).nats
    batch = padded_batch(encoder.encode(document, WINDOW_TOKENS), WINDOW_TOKENS, 0, 0)
    batch = jax.tree.map(jnp.asarray, batch)
    log_p = jax.nn.log_softmax(model.logits(params, c, model.forward(params, c, batch)), -1)
    each = -jnp.take_along_axis(log_p, batch.targets[..., None], -1)[..., 0]
    assert nats == pytest.approx(float(np.sum(each * (batch.weights > 0))), rel=1e-5)
