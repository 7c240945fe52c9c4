"""Scaling laws: the loss of a model with N parameters trained on D tokens, fitted to small models.

    L(N, D) = E + A / N^α + B / D^β           with C = 6·N·D training FLOPs

    runs (N, D, L) ─ fit ─► ScalingLaw ─ bootstrap ─► laws of resampled residuals ─► intervals;  optimum(C) ─► N and D

The fit is approach 3 of Hoffmann et al. 2022: the Huber loss of log L, minimized by L-BFGS from the best of a grid of starting
points. Their coefficients (:data:`HOFFMANN`, from the paper's source) give 40 billion parameters and 2.4 trillion tokens for Gopher's
5.76e23 FLOPs. Their other two approaches give about 70 billion and 1.4 trillion, the size of Chinchilla. Besiroglu et al. 2024 found
that fit not to have converged; theirs of the same runs (:data:`BESIROGLU`) agrees with Chinchilla.

>>> [f"{value:.1e}" for value in HOFFMANN.optimum(5.76e23)], [f"{value:.1e}" for value in BESIROGLU.optimum(5.76e23)]
(['4.0e+10', '2.4e+12'], ['7.2e+10', '1.3e+12'])
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import brentq, minimize
from scipy.special import logsumexp

from alhena.shapes import Float

HUBER = 1e-3
_GRID = (
    (-1, -0.5, 0, 0.5, 1),
    (0, 5, 10, 15, 20, 25),
    (0, 5, 10, 15, 20, 25),
    (0, 0.5, 1, 1.5, 2),
    (0, 0.5, 1, 1.5, 2),
)
_STARTS = 10  # L-BFGS starts from this many of the grid's 4,500 points, those of lowest error


class Rung(NamedTuple):
    """One trained model of the ladder."""

    parameters: float
    tokens: float
    loss: float  # nats


@dataclass(frozen=True)
class ScalingLaw:
    """L(N, D) = E + A / N^α + B / D^β, in nats. Methods accept numbers or arrays."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float

    def __str__(self) -> str:
        return f"L(N, D) = {self.E:.3g} + {self.A:.3g}/N^{self.alpha:.2f} + {self.B:.3g}/D^{self.beta:.2f}"

    def loss(self, parameters: Any, tokens: Any) -> Any:
        """Predicted loss."""
        return self.E + self.A / parameters**self.alpha + self.B / tokens**self.beta

    def optimum(self, flops: Any) -> tuple[Any, Any]:
        """Parameters and tokens of the lowest loss at 6·N·D = ``flops``."""
        ratio = (self.alpha * self.A / (self.beta * self.B)) ** (1 / (self.alpha + self.beta))
        parameters = ratio * (flops / 6) ** (self.beta / (self.alpha + self.beta))
        return parameters, flops / (6 * parameters)

    def tokens_for(self, loss: float, parameters: float) -> float:
        """Training tokens with which a model reaches ``loss``; infinite when it is too small."""
        reducible = loss - self.E - self.A / parameters**self.alpha
        return (self.B / reducible) ** (1 / self.beta) if reducible > 0 else np.inf

    def inference_optimum(self, flops: float, served: float) -> tuple[float, float]:
        """Parameters and tokens of lowest training plus inference cost, at the loss of the optimum of ``flops``.

        Minimizes 6·N·D + 2·N·served, where ``served`` is the number of tokens processed at inference (Sardana et al. 2023). The
        minimum is the root of the derivative by log N; D is unbounded towards the smallest size that reaches the loss.
        """
        max_parameters, tokens = self.optimum(flops)
        target = float(self.loss(max_parameters, tokens))
        min_parameters = (self.A / (target - self.E)) ** (1 / self.alpha)

        def derivative(log_n: float) -> float:
            """Derivative of 6·N·D + 2·N·served by log N, divided by N."""
            n = np.exp(log_n)
            d = self.tokens_for(target, n)
            saved = (self.alpha * self.A / n**self.alpha) / (self.beta * self.B / d**self.beta)
            return 6 * d * (1 - saved) + 2 * served

        parameters = float(np.exp(brentq(derivative, np.log(min_parameters) + 1e-6, np.log(max_parameters) + 1e-9)))
        return parameters, self.tokens_for(target, parameters)


HOFFMANN = ScalingLaw(1.6934, 406.4, 410.7, 0.3392, 0.2849)
BESIROGLU = ScalingLaw(1.8172, 482.01, 2085.43, 0.3478, 0.3658)
TOKENS_PER_PARAMETER = 20


def chinchilla(flops: float) -> tuple[float, float]:
    """Parameters and tokens by Hoffmann's other two approaches, in which both scale equally: D = 20·N.

    Chinchilla itself:

    >>> parameters, tokens = chinchilla(5.76e23)
    >>> f"{parameters / 1e9:.0f} B parameters, {tokens / 1e12:.1f} T tokens"
    '69 B parameters, 1.4 T tokens'
    """
    parameters = math.sqrt(flops / (6 * TOKENS_PER_PARAMETER))
    return parameters, TOKENS_PER_PARAMETER * parameters


@dataclass(frozen=True)
class Compute:
    """A compute budget: chips of so many FLOP/s each, for a number of days, at a model FLOPs utilization.

    >>> Compute(chips=4096, flops=275e12, days=10, utilization=0.5).total
    4.866048e+23
    """

    chips: int
    flops: float
    days: float
    utilization: float = 0.5

    @property
    def total(self) -> float:
        """Training FLOPs."""
        return self.chips * self.flops * self.utilization * self.days * 86_400


def _error(
    theta: Float[np.ndarray, "*starts 5"],
    n: Float[np.ndarray, " runs"],
    d: Float[np.ndarray, " runs"],
    loss: Float[np.ndarray, " runs"],
) -> tuple[Float[np.ndarray | np.float64, "*starts"], Float[np.ndarray, "*starts 5"]]:
    """Huber loss and its gradient. theta holds log E, log A, log B, α and β; n, d and loss are logarithms."""
    e, a, b, alpha, beta = (theta[..., i, None] for i in range(5))
    terms = np.stack(np.broadcast_arrays(e, a - alpha * n, b - beta * d), -1)
    total = logsumexp(terms, -1)
    residual = total - loss
    fractions = np.exp(terms - total[..., None])
    derivative = np.clip(residual, -HUBER, HUBER)
    huber = np.where(np.abs(residual) <= HUBER, residual**2 / 2, HUBER * (np.abs(residual) - HUBER / 2))
    parts = [fractions[..., 0], fractions[..., 1], fractions[..., 2], -n * fractions[..., 1], -d * fractions[..., 2]]
    return huber.sum(-1), np.stack([(derivative * part).sum(-1) for part in parts], -1)


def fit(rungs: Sequence[Rung], starts: Float[np.ndarray, "starts 5"] | None = None) -> ScalingLaw:
    """Hoffmann's approach 3. Raises ValueError for fewer than six rungs, one size only, or one token count only."""
    table = np.log(np.array(rungs, float))
    if len(table) < 6 or min(len(np.unique(table[:, i])) for i in (0, 1)) < 2:
        raise ValueError(
            f"{len(table)} rungs: a law of five coefficients needs six or more, of several sizes and token counts"
        )
    n, d, loss = table.T
    if starts is None:
        grid = np.stack(np.meshgrid(*_GRID, indexing="ij"), -1).reshape(-1, 5)
        starts = grid[np.argsort(_error(grid, n, d, loss)[0])[:_STARTS]]
    scale = 1e6  # the Huber loss of good fits is below the tolerances of L-BFGS
    target = lambda theta: tuple(scale * v for v in _error(theta, n, d, loss))  # noqa: E731
    options = {"maxiter": 5000, "maxfun": 20000, "ftol": 1e-14, "gtol": 1e-9}
    bounds = [(None, None)] * 3 + [(0.01, None)] * 2
    results = [minimize(target, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options) for start in starts]
    e, a, b, alpha, beta = min(results, key=lambda result: result.fun).x
    return ScalingLaw(float(np.exp(e)), float(np.exp(a)), float(np.exp(b)), float(alpha), float(beta))


def bootstrap(rungs: Sequence[Rung], law: ScalingLaw, times: int, seed: int = 0) -> list[ScalingLaw]:
    """Laws fitted to the law's predictions plus resampled residuals.

    Residuals are resampled, not runs, because the ladder's sizes and token counts are chosen and few. They are scaled by
    √(n / (n − 5)) to correct for the five fitted coefficients.
    """
    n, d, loss = np.array(rungs, float).T
    expected = np.log(law.loss(n, d))
    residual = (np.log(loss) - expected) * np.sqrt(len(n) / (len(n) - 5))
    rng, start = (
        np.random.default_rng(seed),
        np.array([[*np.log(np.maximum([law.E, law.A, law.B], 1e-9)), law.alpha, law.beta]]),
    )
    samples = [np.exp(expected + rng.choice(residual, len(n))) for _ in range(times)]
    return [fit([Rung(*rung) for rung in zip(n, d, losses, strict=True)], start) for losses in samples]
