"""Writes gemma3_270m.json: tokens, log-probabilities and a continuation of the real Gemma 3 270M by llama.cpp.

    python tests/real/golden/make_270m.py FILE

FILE is the model with its values in float32, as ``float32_copy`` of benchmarks/bench_open_weights.py makes it: on the file itself
llama.cpp would round activations to 8 bits. The interpreter needs NumPy and ``xllamacpp``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[2] / "benchmarks"))
from bench_open_weights import LlamaEngine  # noqa: E402

TEXTS = [
    "The meaning of life,  the universe and everything is 42.",
    "Ünïcödé: straße, naïve, señor, Œuvre, Łódź, Dvořák, Ærø, İstanbul",
    "Привет, мир! Съешь ещё этих мягких французских булок.",
    "こんにちは世界。吾輩は猫である。名前はまだ無い。",
    "我能吞下玻璃而不伤身体。漢字和汉字",
    "안녕하세요, 세계! 다람쥐 헌 쳇바퀴에 타고파.",
    "مرحبا بالعالم، كيف حالك؟ שלום עולם",
    "नमस्ते दुनिया। ฉันกินกระจกได้ แต่มันไม่ทำให้ฉันเจ็บ ᚠᛇᚻ᛫ᛒᛦᚦ",
    "def f(x):\n    return [i ** 2 for i in range(x)]\n\n\n\tprint(f(10))\r\n",
    "<h1>Title</h1><p>a &amp; b</p> <start_of_turn>user <bos> <unused7> <0x41> [multimodal]",
    "3.14159e-10 + 1,000,000 = $5.00 ½ ² ∑ √ ≠ 😀👩‍👩‍👧‍👦🇨🇭\u200b\u00a0\u3000\ufffe",
    " leading and trailing   ",
]
SCORED = (
    "Call me Ishmael. Some years ago—never mind how long precisely—having little or no money in my purse, and nothing "
    "particular to interest me on shore, I thought I would sail about a little and see the watery part of the world."
)
PROMPT = "The three primary colors are red,"

if __name__ == "__main__":
    engine = LlamaEngine(Path(sys.argv[1]))
    scored, prompt = ([2, *tokens] for tokens in engine.tokenize([SCORED, PROMPT]))
    golden = {
        "texts": TEXTS, "tokens": engine.tokenize(TEXTS), "scored": SCORED, "prompt": PROMPT,
        "log_probabilities": [round(x, 5) for x in engine.score(scored)], "greedy": engine.greedy(prompt, 24)["tokens"],
    }  # fmt: skip
    (HERE / "gemma3_270m.json").write_text(json.dumps(golden, ensure_ascii=False, indent=0) + "\n")
