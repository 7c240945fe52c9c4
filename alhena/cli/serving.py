"""Commands that answer with a model: chat, serve."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from alhena.cli.arguments import OptionalFolder, model_folder, served_folder

if TYPE_CHECKING:
    from alhena.serve.decoding.speculative.draft import DraftSource

CLASSIFIER = "alhena.serve.safety:classify"
DEFAULT_STATE = Path("~/.local/state/alhena/serve").expanduser()


def _draft(name: str | None, tokens: int) -> DraftSource | None:
    from alhena.serve.decoding.speculative.draft import LOOKUP, DraftSource

    if name is None:
        return None
    return DraftSource(None if name == LOOKUP else model_folder(Path(name), "assistant"), tokens)


def _cache_dtype(kv: str) -> str | None:
    """The dtype of the cache that a flag names; None: that of the model."""
    return None if kv == "exact" else kv


@dataclass(frozen=True)
class Chat:
    """Chat with a model in the terminal. A line may hold paths of images, audio files and video clips.

    Generated images are saved in the working directory. Ctrl-C stops an answer; /quit ends the chat.
    """

    folder: OptionalFolder = None  # a run folder or a model folder; left out: the small model of this package
    name: str | None = None  # name of the model, in a run folder; left out: nano, or assistant
    ask: str | None = None  # answer this one question and exit
    system: str | None = None  # an instruction to the model, before the first turn
    think: bool = False  # let the model think before it answers, where it can
    kv: Literal["exact", "int8"] = "exact"  # int8: rounds the key-value cache, which then holds about twice the tokens
    # speculative decoding, the same answers sooner: a smaller model of the same vocabulary that proposes tokens, or lookup: what
    # followed the last tokens where they occurred before
    draft: str | None = None
    draft_tokens: int = 4  # tokens that the draft proposes at a time, 1 to 16

    def __call__(self) -> None:
        from alhena.serve.chat import chat

        # An interrupt that ends an answer does not end the chat.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        folder = served_folder(self.folder, self.name)
        draft = _draft(self.draft, self.draft_tokens)
        chat(folder, self.ask, self.system, self.think, draft, _cache_dtype(self.kv))


@dataclass(frozen=True)
class Serve:
    """Serve a model through the Gemini API (docs/api.md lists what of it works)."""

    folder: OptionalFolder = None  # a run folder or a model folder; left out: the small model of this package
    name: str | None = None  # name of the model, in a run folder; left out: nano, or assistant
    host: str = "127.0.0.1"  # address to listen on; 0.0.0.0 for requests from other machines, which demands a key
    port: int = 8000  # port to listen on
    allow_host: tuple[str, ...] = ()  # further names that the Host header of a request may have
    # a key that requests must carry; repeatable; also from ALHENA_API_KEY, several separated by commas
    api_key: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    # a further name of the model, NAME=MODEL, as in gemini-2.5-flash=nano; repeatable
    alias: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    any_model: bool = False  # answer to any model name
    # an origin whose web pages may call this server, as in https://app.example; repeatable
    cors: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    state: Path = DEFAULT_STATE  # folder of uploaded files, caches, batches and interactions
    limit_concurrency: int = 256  # maximum number of requests that run or wait; more are refused
    kv: Literal["exact", "int8"] = "exact"  # int8: rounds the key-value cache, which then holds about twice the tokens
    safety: str = CLASSIFIER  # what rates texts for safetySettings: module:function, or none
    log_format: Literal["text", "json"] = "text"  # json: one object a line, one for each request
    log_contents: bool = False  # log what users write
    # speculative decoding, the same answers sooner: a smaller model of the same vocabulary that proposes tokens, or lookup: what
    # followed the last tokens where they occurred before
    draft: str | None = None
    draft_tokens: int = 4  # tokens that the draft proposes at a time, 1 to 16
    drain_seconds: float = 30.0  # time that running requests have to end after SIGTERM

    def __call__(self) -> None:
        from alhena.serve.gemini.app import Listening, serve
        from alhena.serve.gemini.server.settings import Settings, read_aliases
        from alhena.serve.monitoring.logs import configure
        from alhena.serve.safety import load_classifier

        configure(self.log_format)
        from_environment = tuple(filter(None, os.environ.get("ALHENA_API_KEY", "").split(",")))
        settings = Settings(
            any_model=self.any_model, keys=(*self.api_key, *from_environment), cors=self.cors,
            max_running=self.limit_concurrency, state=self.state,
            classify=None if self.safety == "none" else load_classifier(self.safety), drain_seconds=self.drain_seconds,
            log_contents=self.log_contents, cache_dtype=_cache_dtype(self.kv),
            draft=_draft(self.draft, self.draft_tokens),
        )  # fmt: skip
        where = Listening(self.host, self.port, self.allow_host)
        serve(served_folder(self.folder, self.name), where, settings, read_aliases(self.alias))
