"""Monitoring: early warnings of divergence, output norms by modality, comparison of trainings."""

from __future__ import annotations

import io

import jax
import numpy as np
import pytest
from rich.console import Console

from alhena import progress
from alhena.batch import Modality
from alhena.files import add_line, read_lines
from alhena.model import model
from alhena.tokens.examples.padding import padded_batch
from alhena.train.loss import batch_loss
from alhena.train.monitoring import compare
from alhena.train.monitoring.divergence import WINDOW, growing_norms, newly_growing_norms
from alhena.train.monitoring.metrics import Metrics, by_modality
from alhena.train.trainer import Folders, Hooks, train
from tests.train.test_training import TRAINING, copy


def lines(norms, gradient=1.0) -> list[dict]:
    return [
        {"step": 10 * n, "gradient_norm": gradient, "output_norm_by_modality": {"image": float(norm), "text": 2.0}}
        for n, norm in enumerate(norms, 1)
    ]


def test_a_trend_gives_a_warning_and_noise_does_not():
    rng, x = np.random.default_rng(0), np.arange(40)
    slow, fast = 2 ** (x / 15), 2 ** (x / 8)
    assert growing_norms(lines(slow), 0) == {}
    assert growing_norms(lines(fast), 0) == {"output norm (image)": round(2 ** ((WINDOW - 1) / 8), 2)}
    assert growing_norms(lines(fast * np.exp(0.05 * rng.normal(size=40))), 0)
    assert growing_norms(lines(np.exp(rng.normal(size=40))), 0) == {}
    assert growing_norms(lines(fast[::-1]), 0) == {}
    assert growing_norms(lines(fast[: WINDOW - 1]), 0) == {}
    assert growing_norms(lines(fast[: WINDOW + 3]), warmup=40) == {}  # only 11 of them are after the warm-up
    # One warning, when the growth begins.
    flat_then_fast = np.concatenate([np.ones(20), fast])
    warned = [n for n in range(1, 60) if newly_growing_norms(lines(flat_then_fast[:n]), 0)]
    assert len(warned) == 1
    assert 20 < warned[0] < 20 + WINDOW


def test_the_output_norm_is_that_of_the_last_layer(tiny, encoder, documents):
    batch = padded_batch([e for d in documents for e in encoder.encode(d, 256)], 64, 64, 4)
    _, sums = jax.jit(batch_loss, static_argnums=1)(*tiny, batch)
    x = np.asarray(model.decoder_output(*tiny, batch))
    norms = by_modality([sums])["output_norm"]
    assert set(norms) == {"text", "image", "audio"}
    for name, value in norms.items():
        weights = batch.weights * (batch.modality == Modality[name.upper()])
        np.testing.assert_allclose(value, np.sqrt(np.sum(weights * np.mean(x**2, -1)) / weights.sum()), rtol=1e-3)


def test_runs_are_listed_and_plotted(tiny, data, tmp_path):
    params, c = tiny
    for name, steps in (("one", 8), ("two", 4)):
        train(
            copy(params),
            c,
            TRAINING,
            Folders(data, tmp_path / name, data),
            f"a run called {name}",
            Hooks(stop_after=steps),
        )
    last = read_lines(tmp_path / "two" / "metrics.jsonl")[-2]
    assert last["kind"] == "train"
    add_line(tmp_path / "two" / "metrics.jsonl", last | {"step": 5, "skipped": 3})
    (tmp_path / "empty").mkdir()
    runs = compare.find_runs([tmp_path])
    assert [r.folder.name for r in runs] == ["one", "two"]
    screen = Console(file=io.StringIO(), width=250)
    screen.print(compare.runs_table(runs))
    text = screen.file.getvalue()
    for words in ("a run called one", "8/8", "5/8", "3 skipped", f"{model.count(params) / 1e6:.2f} M", " %"):
        assert words in text
    assert f"{last['loss_by_modality']['text']:.2f}" in text
    narrow = Console(file=io.StringIO(), width=80)
    narrow.print(compare.runs_table(runs))
    assert all(name in narrow.file.getvalue() for name in ("training", "text", "validation", "goodput"))
    compare.plot_losses(runs, tmp_path / "plots" / "losses.png")
    assert (tmp_path / "plots" / "losses.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="no training has logged anything under these folders"):
        compare.find_runs([tmp_path / "empty"])


def test_weights_and_biases_without_its_package_is_refused_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "alhena")
    with pytest.raises(ValueError, match=r"pip install 'alhena\[wandb\]'"):
        Metrics(tmp_path, "title", 10, 0)


@pytest.mark.parametrize(("interval", "lines"), [(0, ["0 of 3", "1 of 3", "2 of 3"]), (60, [])])
def test_a_long_validation_shows_its_sources_and_a_short_one_does_not(tmp_path, monkeypatch, capsys, interval, lines):
    monkeypatch.setattr(progress, "INTERVAL", interval)
    with Metrics(tmp_path, "title", 10, 0) as metrics:
        assert list(metrics.track("validation", ("text", "code", "speech"))) == ["text", "code", "speech"]
    shown = capsys.readouterr().out.splitlines()
    assert [line.partition(", ")[0] for line in shown] == [f"validation: {line}" for line in lines]
