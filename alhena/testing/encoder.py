"""The encoder of a server without a model: every character is a token, and a media item is a fixed number of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

from alhena.batch import Example
from alhena.content import (
    Audio,
    Content,
    Image,
    Media,
    Part,
    Text,
    Thought,
    Tool,
    ToolCall,
    ToolResult,
    Video,
    call_text,
)
from alhena.media import check
from alhena.tokens.formats.prompts import CONTROLS, PromptSettings
from alhena.tokens.gemma_encoder import GemmaEncoder
from alhena.tokens.text.hf_tokenizer import SPACE, HfTokenizer

FORMAT = "gemma4"
MEDIA_TOKENS = 256
CHARACTERS = SPACE + "".join(map(chr, range(33, 127)))
PLACEHOLDERS: dict[type[Part], str] = {Image: "image", Audio: "audio", Video: "video"}


def _tokenizer() -> HfTokenizer:
    """The control tokens of a prompt format, the bytes, and the characters of ASCII; no merges."""
    controls = tuple(dict.fromkeys([*CONTROLS[FORMAT].values(), "<unk>"]))
    tokens = [*controls, *(f"<0x{byte:02X}>" for byte in range(256)), *CHARACTERS]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    tokenizer.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in controls])
    return HfTokenizer.from_bytes(tokenizer.to_str().encode())


class CharacterEncoder(GemmaEncoder):
    """Prompts to tokens, whatever the order of turns and whatever the media, without rendering a prompt format."""

    def tokens(self, part: Part) -> list[int]:
        """Raises ValueError when a medium does not decode, as an engine with a model does."""
        check(part)
        if isinstance(part, Text | Thought):
            return self.tokenizer.encode(part.text)
        if isinstance(part, ToolCall):
            return self.tokenizer.encode(call_text(part))
        if isinstance(part, ToolResult):
            result = Text(call_text(ToolCall(part.name, part.response)))
            return [token for item in (result, *part.parts) for token in self.tokens(item)]
        assert isinstance(part, Media)
        return [self.placeholders[PLACEHOLDERS[type(part)]]] * MEDIA_TOKENS

    def prompt(self, contents: Sequence[Content], tools: Sequence[Tool] = (), thinking: bool = False) -> Example:
        tokens = np.array([token for c in contents for part in c.parts for token in self.tokens(part)], np.int32)
        none = np.zeros(0, np.int32)
        return Example(
            tokens, tokens, np.zeros(len(tokens), np.float32), np.zeros(len(tokens), np.int32),
            np.zeros((0, self.patch_values), np.uint8), np.zeros((0, 2), np.int32), none, self.no_frames, none, none,
        )  # fmt: skip


@cache
def character_encoder() -> CharacterEncoder:
    tokenizer = _tokenizer()
    return CharacterEncoder(tokenizer, PromptSettings.from_tokenizer(FORMAT, tokenizer))
