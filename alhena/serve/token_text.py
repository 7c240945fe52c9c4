"""The text of one token, as log-probabilities name it."""

from __future__ import annotations

from alhena.tokens.encode import Encoder
from alhena.tokens.encoders import AnyEncoder
from alhena.tokens.text.hf_tokenizer import HfTokenizer
from alhena.tokens.vocabulary import CONTROLS


def token_text(encoder: AnyEncoder, token: int) -> str:
    """Text of a token, a space at its start included; of a control token its name, of any other its number in angle brackets."""
    tokenizer = encoder.tokenizer
    if isinstance(encoder, Encoder) and token >= encoder.vocabulary.num_text:
        control = token - encoder.vocabulary.num_text
        return CONTROLS[control] if control < len(CONTROLS) else f"<{token}>"
    if token >= tokenizer.size:
        return f"<{token}>"
    if isinstance(tokenizer, HfTokenizer):
        return tokenizer.decode([token])
    # The first token of a text loses its leading space.
    line_end = tokenizer.encode("\n")[-1:]
    return tokenizer.decode([*line_end, token]).removeprefix(tokenizer.decode(line_end))
