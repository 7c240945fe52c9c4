"""Token id ranges: text tokens, then control tokens, then the codes of the image tokenizer.

    0 ─────────── text ──┬──────── control ────────┬──────── codes ─── size
      SentencePiece      │ <bos> <user> … <time 0> │ code 0 … code K-1
      (0 is <unk>)       │ … <rows 1> <columns 1>… │

Sequences of the model (``<img>`` and ``<aud>`` are placeholders, one for each output vector of an encoder):

    <bos> <user> <boi> <img> <img> <eoi> What is this? <end> <model> a circle <end>
    <bos> <user> Draw a circle. <end> <model> <boi_out> <rows 4> <columns 4> code×16 <eoi_out> <end>
    <bos> <user> <bov> <time 0> <boi> <img> <eoi> <time 2> <boi> <img> <eoi> <eov> …      (times in quarter seconds)
    <bos> <document> running text … <end>

With tools (alhena/tokens/formats/own_tools.py; ``"`` stands for <quote>):

    <bos> <tool> weather(city: string) The weather. <end> <user> How warm is it in Bern? <end>
          <model> <call> call:weather{city:"Bern"} <call_end> <end> <result> response:weather{temp:21} <end> <model> 21 degrees <end>
"""

from __future__ import annotations

from dataclasses import dataclass

from alhena.schema import bounded

CONTROLS = (
    "<pad> <bos> <user> <model> <document> <end> <boi> <img> <eoi> <boa> <aud> <eoa> <bov> <eov> <boi_out> <eoi_out> "
    "<tool> <call> <call_end> <quote> <result>"
).split()
# <time k>: k quarter seconds from the start of a video; the last one stands for all later times.
NUM_TIMES = 64
# <rows n> and <columns n>: the code grid of a generated image, 1..MAX_GRID.
MAX_GRID = 32


@dataclass(frozen=True)
class Vocabulary:
    """Ids of control tokens and image codes.

    >>> v = Vocabulary(num_text=1000, num_codes=512)
    >>> v.pad, v.time(0), v.rows(1), v.columns(1), v.code(0), v.size
    (1000, 1021, 1085, 1117, 1149, 1661)
    >>> v.is_code(1148), v.is_code(1149)
    (False, True)
    """

    num_text: int
    num_codes: int

    def __post_init__(self) -> None:
        bounded(self, num_text=(0, 2**22), num_codes=(0, 2**20))

    def control(self, name: str) -> int:
        """Id of a control token by name, for instance ``<boi>``. Raises ValueError for an unknown name."""
        return self.num_text + CONTROLS.index(name)

    def time(self, quarter_seconds: int) -> int:
        return self.num_text + len(CONTROLS) + min(max(quarter_seconds, 0), NUM_TIMES - 1)

    def rows(self, n: int) -> int:
        return self._grid(n) + NUM_TIMES

    def columns(self, n: int) -> int:
        return self._grid(n) + NUM_TIMES + MAX_GRID

    def _grid(self, n: int) -> int:
        if not 1 <= n <= MAX_GRID:
            raise ValueError(f"an image of {n} code rows or columns; 1 to {MAX_GRID} can be written")
        return self.num_text + len(CONTROLS) + n - 1

    @property
    def first_code(self) -> int:
        return self.num_text + len(CONTROLS) + NUM_TIMES + 2 * MAX_GRID

    def code(self, k: int) -> int:
        return self.first_code + k

    def is_code(self, token: int) -> bool:
        return self.first_code <= token < self.size

    @property
    def size(self) -> int:
        return self.first_code + self.num_codes

    @property
    def pad(self) -> int:
        return self.control("<pad>")

    @property
    def bos(self) -> int:
        return self.control("<bos>")

    @property
    def end(self) -> int:
        return self.control("<end>")
