"""A small tokenizer.json of Gemma's kind, for tests: the real one has 262,144 tokens and 33 MB."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

# As in Gemma's file, the first four are flagged as special and the others are not.
CONTROLS = {name: i for i, name in enumerate(("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "[multimodal]"))}
CONTROLS |= {f"<unused{i}>": 6 + i for i in range(6)} | {"<start_of_turn>": 12, "<end_of_turn>": 13}
ADDED = ["\n" * n for n in range(1, 6)] + ["▁" * n for n in range(2, 6)] + ["<h1>", "</h1>"]
CHARACTERS = "▁abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:;!?'\"<>[]{}()/|_-=é\t"
MERGES = (
    ("l", "a"),
    ("t", "h"),
    ("th", "e"),
    ("▁", "the"),
    ("la", "m"),
    ("▁", "lam"),
    ("b", "s"),
    ("e", "n"),
    ("▁lam", "bs"),
)


@lru_cache
def small_tokenizer(special: tuple[str, ...] = ("<pad>", "<eos>", "<bos>", "<unk>"), more: Iterable[str] = ()) -> bytes:
    """The file, with ``special`` flagged as such; ``more`` are added tokens after all others."""
    runs = [(a[:n], a[n:]) for a in ADDED[:9] for n in range(1, len(a))]
    merges = [*runs, *MERGES]
    tokens = [*CONTROLS, *ADDED, *(f"<0x{byte:02X}>" for byte in range(256)), *CHARACTERS]
    tokens += [a + b for a, b in MERGES]
    vocabulary = {token: i for i, token in enumerate([*tokens, *more])}
    model = models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_tokens(
        [AddedToken(name, normalized=False) for name in [*CONTROLS, *ADDED, *more] if name not in special]
    )
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in special])
    return tokenizer.to_str().encode()
