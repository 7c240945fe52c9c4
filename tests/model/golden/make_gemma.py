"""Writes the golden files of ``tests/model/test_gemma.py``: tiny random models of the reference implementation and their logits.

python -m pip install torch transformers        (for this script only)
python tests/model/golden/make_gemma.py         writes gemma/, gemma2/ and gemma3/ beside it

python tests/model/golden/make_gemma.py FOLDER  opens a folder that Alhena exported and writes its logits to FOLDER/logits.npz
                                                (``exported`` is a random model of this kind)
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    GemmaForCausalLM,
)

SIZES = {
    "vocab_size": 48, "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
    "max_position_embeddings": 64, "attn_implementation": "eager", "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
TOKENS = np.random.default_rng(0).integers(3, 48, (2, 14))


def models() -> dict[str, torch.nn.Module]:
    global_rope = {"rope_type": "linear", "factor": 8.0, "rope_theta": 1_000_000.0}
    local_rope = {"rope_type": "default", "rope_theta": 10_000.0}
    return {
        "gemma": GemmaForCausalLM(GemmaConfig(**SIZES, num_hidden_layers=2)),
        "gemma2": Gemma2ForCausalLM(
            Gemma2Config(
                **SIZES,
                num_hidden_layers=3,
                sliding_window=4,
                query_pre_attn_scalar=5,
                attn_logit_softcapping=2.0,
                final_logit_softcapping=3.0,
            )
        ),
        "gemma3": Gemma3ForCausalLM(
            Gemma3TextConfig(
                **SIZES,
                num_hidden_layers=7,
                sliding_window=4,
                query_pre_attn_scalar=8,
                rope_parameters={"full_attention": global_rope, "sliding_attention": local_rope},
            )
        ),
    }


def logits(model: torch.nn.Module) -> np.ndarray:
    with torch.no_grad():
        return model.eval()(torch.from_numpy(TOKENS)).logits.float().numpy()


def main() -> None:
    if len(sys.argv) > 1:
        folder = Path(sys.argv[1])
        opened = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
        np.savez(folder / "logits.npz", tokens=TOKENS, logits=logits(opened))
        return
    torch.manual_seed(0)
    here = Path(__file__).parent
    for name, model in models().items():
        for weight in model.parameters():  # norms too: scales of one would hide a missing norm
            torch.nn.init.normal_(weight, std=0.4)
        model.save_pretrained(here / name, max_shard_size="30KB" if name == "gemma3" else "5GB")
        (here / name / "generation_config.json").unlink(missing_ok=True)
        np.savez(here / name / "golden.npz", tokens=TOKENS, logits=logits(model))


if __name__ == "__main__":
    main()
