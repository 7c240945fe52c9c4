"""Commands that answer with a model: chat, serve."""

from __future__ import annotations

import signal
from dataclasses import dataclass

from alhena.cli.arguments import DEFAULT_RUN, Folder, model_folder


@dataclass(frozen=True)
class Chat:
    """Chat with a model in the terminal. A line may hold paths of images, audio files and video clips.

    Generated images are saved in the working directory. Ctrl-C stops an answer; /quit ends the chat.
    """

    folder: Folder = DEFAULT_RUN  # a run folder or a model folder
    name: str = "assistant"  # name of the model, in a run folder
    ask: str | None = None  # answer this one question and exit
    system: str | None = None  # an instruction to the model, before the first turn
    think: bool = False  # let the model think before it answers, where it can

    def __call__(self) -> None:
        from alhena.serve.chat import chat

        # An interrupt that ends an answer does not end the chat.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        chat(model_folder(self.folder, self.name), self.ask, self.system, self.think)


@dataclass(frozen=True)
class Serve:
    """Serve a model through the Gemini API: generateContent, streamGenerateContent, countTokens."""

    folder: Folder = DEFAULT_RUN  # a run folder or a model folder
    name: str = "assistant"  # name of the model, in a run folder
    host: str = "127.0.0.1"  # address to listen on; 0.0.0.0 for requests from other machines
    port: int = 8000  # port to listen on
    allow_host: tuple[str, ...] = ()  # further names that the Host header of a request may have
    limit_concurrency: int = 256  # maximum number of requests that run or wait; more are refused

    def __call__(self) -> None:
        from alhena.serve.gemini.app import Listening, serve

        where = Listening(self.host, self.port, self.allow_host, self.limit_concurrency)
        serve(model_folder(self.folder, self.name), where)
