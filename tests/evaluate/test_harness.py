"""lm-eval's own tasks, unmodified, on our engine: a task of a local file, with choices, running text and completions.

lm-eval is no dependency of this package; the tests run where it is installed.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from alhena.content import Text
from alhena.evaluate.models.engine_model import EngineModel
from alhena.evaluate.models.interface import Continuation
from alhena.serve.engine import Engine
from tests.serve.imported_models import write_imported

pytest.importorskip("lm_eval", reason="lm-eval is an optional dependency")

COMMON = """
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
doc_to_text: "Q: {{{{question}}}}\\nA:"
"""
CHOICES = """
task: local_choices
output_type: multiple_choice
doc_to_choice: "{{{{choices}}}}"
doc_to_target: label
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""
GENERATE = """
task: local_generate
output_type: generate_until
doc_to_target: "{{{{choices[label]}}}}"
generation_kwargs: {{until: ["\\n"], max_gen_toks: 4, do_sample: false}}
metric_list: [{{metric: exact_match}}]
"""
ROLLING = """
task: local_rolling
output_type: loglikelihood_rolling
doc_to_target: "{{{{question}}}}"
metric_list: [{{metric: bits_per_byte}}]
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> EngineModel:
    return EngineModel(Engine.load(write_imported("gemma3_text", tmp_path_factory.mktemp("models"))), turns=False)


@pytest.mark.parametrize(
    ("settings", "metric"),
    [(CHOICES, "acc,none"), (GENERATE, "exact_match,none"), (ROLLING, "bits_per_byte,none")],
    ids=["choices", "generate", "rolling"],
)
def test_a_local_task_runs(model, tmp_path, settings, metric, monkeypatch):
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    from alhena.evaluate.models.harness import HarnessModel

    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    rows = [
        {"question": f"what do {n} lambs eat", "choices": ["grass", "the sea", "x"], "label": n % 3} for n in range(4)
    ]
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    name = settings.split("task: ")[1].split("\n")[0]
    path = tmp_path / f"{name}.yaml"
    path.write_text((COMMON + settings).format(file=tmp_path / "items.jsonl"))
    tasks = TaskManager(include_path=str(tmp_path), include_defaults=False)
    harness = HarnessModel(model)
    results = simple_evaluate(model=harness, tasks=[name], task_manager=tasks, bootstrap_iters=0)
    value = results["results"][name][metric]
    assert value >= 0
    if name == "local_choices":
        chosen = []
        for row in rows:
            prompt = (Text(f"Q: {row['question']}\nA:"),)
            likelihoods = model.log_likelihoods([Continuation(prompt, f" {choice}") for choice in row["choices"]])
            chosen.append(max(range(3), key=lambda i: likelihoods[i].nats) == row["label"])
        assert value == pytest.approx(sum(chosen) / 4)


def test_rolling_windows_predict_every_token_once(model):
    from lm_eval.api.instance import Instance

    from alhena.evaluate.models.harness import HarnessModel

    text = "the lambs eat the grass. " * 20
    short = Instance("loglikelihood_rolling", {}, (text,), 0)
    (whole,) = HarnessModel(model).loglikelihood_rolling([short])
    tokens = model.engine.encoder.tokenizer.encode(text)
    (scored,) = model.score([(model.beginning(), tokens)])
    assert whole == pytest.approx(scored.nats, rel=1e-6)


def test_settings_that_are_not_understood_are_refused(model):
    from lm_eval.api.instance import Instance

    from alhena.evaluate.models.harness import HarnessModel

    with pytest.raises(ValueError, match="'num_beams' is not supported"):
        HarnessModel(model).generate_until([Instance("generate_until", {}, ("x", {"num_beams": 3}), 0)])


def test_the_adapter_is_optional():
    """Nothing else imports it."""
    folder = Path(__file__).parents[2] / "alhena"
    users = [path for path in folder.rglob("*.py") if "lm_eval" in path.read_text() and path.name != "harness.py"]
    assert not users
