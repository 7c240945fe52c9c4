"""Golden tokens of llama.cpp: alhena-nano, exported, reads these texts.

alhena export alhena/nano --to gguf --out nano.gguf
PYTHON tests/tokens/golden/make_llama_tokens.py nano.gguf          with an interpreter that has xllamacpp
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
TEXTS = [
    "", " ", "   a", "a   b ", "\n", "a\nb\n\n c", "\ta\r\n", "▁", "a▁b", "<bos>", "<user> Hi <end>", "<0x41><unk></s>", "<code 5> <time 3>",
    "[PAD3]", "007 3.14159 1e-9 ١٢٣ ①②", "👩‍👩‍👧‍👦🏽 🇨🇭🫠", "é é ﬁ Å ｱ", "\u200b\ufeff\u00ad", "𝔘𝔫𝔦 𓂀 𒀀", "مرحبا", "שלום", "हिन्दी ไทย",
    "中文，。 한국어 日本語", "\x01\x7f", "aaaaaaaaaaaaaaaa", "def f(x):\n    return x  # <b>\n", "\u3000\u00a0x", "The quick brown fox.",
    "Zürich, Genève, Łódź, Київ, Αθήνα",
]  # fmt: skip


def main(path: Path) -> None:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from llama_cpp import LlamaCpp

    model = LlamaCpp(path, 64)
    lines = [json.dumps([text, model.tokenize(text)], ensure_ascii=False) for text in TEXTS]
    Path(__file__).with_name("llama_tokens.json").write_text("[\n" + ",\n".join(lines) + "\n]\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
