"""Writes the golden numbers of ``tests/evaluate/test_likelihood.py``: log-likelihoods of continuations by the reference implementation.

    python -m pip install torch transformers      (for this script only)
    python -c "from tests.serve.imported_models import write_source; from pathlib import Path; write_source('gemma3_text', Path('FOLDER'))"
    python tests/evaluate/golden/make_likelihoods.py FOLDER      writes likelihoods.json beside it

As lm-eval's model for transformers does: context and continuation are encoded together, spaces at the end of the context belong to the
continuation, and <bos> comes first.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

SHOTS = "".join(f"Q: the lambs eat {n} bushels, then {n + 2} more.\nA: they eat {2 * n + 2}.\n\n" for n in range(9))
PAIRS = [
    *(
        (f"{SHOTS}Q: the lambs eat {n} bushels.\nA:", text)
        for n in (3, 4)
        for text in (" they eat 3.", " 7", " the lambs")
    ),
    ("the lamb", " eats the grass of the lambs"),
    ("the lamb ", "eats"),
    ("", "the lambs"),
    ("x" * 300, "yz"),
]


def main() -> None:
    folder = Path(sys.argv[1])
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    # Of weights in bfloat16 the reference rounds the scale of the embeddings too.
    embedding = model.get_input_embeddings()
    embedding.embed_scale = embedding.embed_scale.bfloat16().float()
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    out = []
    for context, continuation in PAIRS:
        before = tokenizer.encode(context.rstrip(), add_special_tokens=False) if context else []
        ids = tokenizer.encode(context + continuation, add_special_tokens=False)
        tokens = torch.tensor([[tokenizer.convert_tokens_to_ids("<bos>"), *ids]])
        with torch.no_grad():
            logits = model(tokens).logits[0].log_softmax(-1)
        at = torch.arange(len(before), len(ids))
        targets = tokens[0, 1:][at]
        greedy = bool((logits[at].argmax(-1) == targets).all())
        out.append([context, continuation, float(logits[at, targets].double().sum()), len(at), greedy])
    # A greedy continuation, so that both values of the flag occur.
    context = "the lamb"
    ids = [tokenizer.convert_tokens_to_ids("<bos>"), *tokenizer.encode(context, add_special_tokens=False)]
    with torch.no_grad():
        best = model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
    out.append({"context": context, "token": int(best.argmax()), "nats": float(best.max())})
    (Path(__file__).parent / "likelihoods.json").write_text(json.dumps(out, indent=0, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
