"""The fit recovers the coefficients behind synthetic losses; published sizes are reproduced; the ladder trains each rung once."""

from __future__ import annotations

from dataclasses import replace

import jax
import numpy as np
import pytest

from alhena.files import read_json, write_json
from alhena.model import model
from alhena.scaling.ladder import Grid, fit_ladder, scaled, suggest, train_ladder, with_steps
from alhena.scaling.laws import BESIROGLU, HOFFMANN, Rung, ScalingLaw, bootstrap, fit
from alhena.train.trainer import Folders
from tests.train.test_training import TRAINING

SMALL = ScalingLaw(1.2, 60.0, 90.0, 0.35, 0.3)


def rungs_of(law: ScalingLaw, budgets: np.ndarray, noise: float = 0.0) -> list[Rung]:
    """An IsoFLOP ladder of losses by a known law."""
    rng = np.random.default_rng(0)
    pairs = [(n, c / (6 * n)) for c in budgets for n in c**0.5 * np.geomspace(0.02, 0.3, 5)]
    return [Rung(n, d, float(law.loss(n, d)) * np.exp(noise * rng.normal())) for n, d in pairs]


@pytest.mark.parametrize(("law", "budgets"), [(HOFFMANN, (1e19, 1e21, 5)), (SMALL, (3e11, 1e13, 4))])
def test_the_fit_recovers_the_law_of_synthetic_losses(law, budgets):
    fitted = fit(rungs_of(law, np.geomspace(*budgets)))
    np.testing.assert_allclose(list(vars(fitted).values()), list(vars(law).values()), rtol=1e-3)


def test_the_interval_of_a_noisy_ladder_contains_the_true_value():
    rungs = rungs_of(SMALL, np.geomspace(3e11, 1e13, 4), noise=0.005)
    law = fit(rungs)
    laws = bootstrap(rungs, law, 40)
    assert laws == bootstrap(rungs, law, 40)
    for truth, values in (
        (SMALL.optimum(1e14)[0], [sample.optimum(1e14)[0] for sample in laws]),
        (SMALL.loss(1e6, 1e7), [sample.loss(1e6, 1e7) for sample in laws]),
    ):
        low, high = np.percentile(values, [2.5, 97.5])
        assert low < truth < high
        assert high < 3 * low


def test_chinchilla():
    """Hoffmann's approach 3 gives 40 B for Gopher's budget (the paper's table 2); the refit gives Chinchilla's size."""
    n, d = HOFFMANN.optimum(5.76e23)
    assert n == pytest.approx(40e9, rel=0.02)
    assert 6 * n * d == pytest.approx(5.76e23)
    n, d = BESIROGLU.optimum(5.76e23)
    assert n == pytest.approx(70e9, rel=0.05)
    assert d == pytest.approx(1.4e12, rel=0.06)


@pytest.mark.parametrize("law", [HOFFMANN, SMALL])
def test_optima_have_the_lowest_loss_and_the_lowest_cost(law):
    n, d = law.optimum(1e20)
    assert all(law.loss(n, d) < law.loss(n * f, d / f) for f in (0.8, 0.99, 1.01, 1.25))
    assert law.inference_optimum(1e20, 0) == pytest.approx((n, d))
    served = 30 * d
    small, long = law.inference_optimum(1e20, served)
    assert small < n < long
    assert law.loss(small, long) == pytest.approx(law.loss(n, d))
    cost = lambda size: 6 * size * law.tokens_for(law.loss(n, d), size) + 2 * size * served  # noqa: E731
    assert all(cost(small) < cost(small * f) for f in (0.9, 0.99, 1.01, 1.1, n / small))


def test_too_few_rungs_are_refused():
    rungs = rungs_of(SMALL, np.array([1e12]))
    for too_few in (rungs[:5], [rung._replace(tokens=1e6) for rung in rungs + rungs]):
        with pytest.raises(ValueError, match="a law of five coefficients needs six or more"):
            fit(too_few)


def test_scaled_configurations_are_valid(tiny):
    _, c = tiny
    sizes = [
        model.count(jax.eval_shape(lambda f=f: model.init(jax.random.key(0), scaled(c, f)))) for f in (0.5, 1, 2, 4)
    ]
    assert scaled(c, 1) == c
    assert sizes == sorted(set(sizes))
    text = replace(c, vision=None, audio=None)
    assert scaled(text, 2).vision is None


def test_a_rung_has_the_phases_in_proportion():
    t = with_steps(TRAINING, 40)
    assert [phase.steps for phase in t.phases] == [20, 20]
    assert t.steps == t.save_every == 40
    with pytest.raises(ValueError, match="a rung of 7 steps"):
        with_steps(TRAINING, 7)


def test_the_ladder_trains_each_rung_once_and_the_fit_is_plotted(tiny, data, tmp_path):
    c = replace(tiny[1], vision=None, audio=None, decoder=replace(tiny[1].decoder, layers=1))
    n = model.count(jax.eval_shape(lambda: model.init(jax.random.key(0), c)))
    budget = 6.0 * n * 20 * TRAINING.shape.batch_size * TRAINING.shape.tokens
    ladder = lambda: train_ladder(c, TRAINING, Folders(data, tmp_path, data), Grid([budget, 1.5 * budget], [1.0]))  # noqa: E731
    rungs = ladder()
    assert [(r.parameters, r.tokens) for r in rungs] == [(n, steps * 256) for steps in (20, 30)]
    assert 0 < rungs[1].loss < rungs[0].loss < np.log(c.vocabulary)
    (path,) = tmp_path.glob(f"{budget:.2e}-{n}-*/rung.json")
    write_json(path, read_json(path) | {"rung": rungs[0]._replace(loss=9.0)._asdict()})
    assert ladder() == [rungs[0]._replace(loss=9.0), rungs[1]]  # read, not trained a second time

    law = fit_ladder(rungs_of(SMALL, np.geomspace(3e11, 3e12, 3), noise=0.003), tmp_path, times=5)
    assert read_json(tmp_path / "law.json")["law"] == vars(law)
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")
    with_ladder, published = suggest(1e24, 1e13, tmp_path), suggest(1e24, 1e13, None)
    assert (with_ladder.row_count, published.row_count) == (7, 4)
