"""A conversation with a model: messages in, answers out. The KV cache is kept between the turns.

Knows nothing of how text is shown.
"""

from __future__ import annotations

from typing import Self, Unpack

from gptx.arguments import text
from gptx.errors import PromptError, UsageError, shown
from gptx.generation.loaded_model import LoadedModel
from gptx.generation.loop import check_prompts
from gptx.generation.one_thread import OneThread
from gptx.generation.options import Given, Options, takes_options
from gptx.generation.stream import Completion, Stream


class Chat:
    """A conversation. The KV cache is kept between turns, so each turn computes only the new tokens.

    Leaving a `with` block, or `close`, gives the cache's memory back. `messages` has the conversation so far.

    Threads: any thread may call a chat, but it gives one answer at a time. While another thread reads an answer, every
    call but `tokens` raises UsageError. The stream of an answer may be closed from any thread.
    """

    def __init__(self, model: LoadedModel, *, system: str | None = None) -> None:
        if not isinstance(model, LoadedModel):
            raise UsageError(f"model is {shown(model)}, expected what gptx.load returns")
        model.need_chat()
        if system is not None and not isinstance(system, str):
            raise UsageError(f"system is {shown(system)}, expected a text")
        self._call = OneThread(
            "this chat is being asked in another thread: wait for its answer, or open a chat of its own"
        )
        self._model = model
        self._session = model.session()
        self._open: Stream | None = None
        self._asked: list[dict[str, str]] = []  # the messages that the open stream answers
        self.messages: list[dict[str, str]] = (
            [{"role": "system", "content": system}] if system is not None else []
        )

    @takes_options
    def stream(self, message: str, **options: Unpack[Given]) -> Stream:
        """Send a message and return a Stream of the answer, with the options of Model.stream.

        The message and the answer join the conversation when the stream ends or is closed. Raises PromptError if the
        context has no room for the message; the conversation is then as it was before.
        """
        text("the message", message)
        checked = self._model.stream_options(options)
        with self._call:
            return self._answer(message, checked)

    def _answer(self, message: str, options: Options) -> Stream:
        question = {"role": "user", "content": message}
        asked = [*self._conversation(), question]
        ids = self._prompt(asked, options)  # before the open answer is closed: this may raise
        self._settle()
        if self.messages != asked[:-1]:  # the answer grew while it was being closed
            asked = [*self.messages, question]
            ids = self._prompt(asked, options)

        def answered(completion: Completion) -> None:
            self.messages = [*asked, {"role": "assistant", "content": completion.text or ""}]
            self._open = None

        self._asked = asked
        self._open = self._model.stream_ids(ids, options, session=self._session, on_end=answered)
        return self._open

    def _conversation(self) -> list[dict[str, str]]:
        """The messages, with an open answer as far as it was read. Raises UsageError where another
        thread is reading it."""
        if self._open is None:
            return self.messages
        self._check_reader(self._open)
        answer = {"role": "assistant", "content": self._open.completion.text or ""}
        return [*self._asked, answer]

    def _prompt(self, asked: list[dict[str, str]], options: Options) -> list[int]:
        """The conversation as token ids. Raises PromptError where it has no room."""
        ids = self._model.chat_ids(asked)
        if len(ids) > self._session.limit:
            raise PromptError(
                f"the conversation has {len(ids)} tokens with this message, and the model's context holds "
                f"{self._session.limit}: start a new one, or ask something shorter"
            )
        check_prompts([ids], [0], limit=self._session.limit, longest=options.rules.max_length)
        return ids

    @takes_options
    def send(self, message: str, **options: Unpack[Given]) -> Completion:
        """Send a message and return the whole answer, with the options of Model.stream."""
        stream = self.stream(message, **options)
        try:
            for _ in stream:
                pass
        except BaseException:
            self._open = None  # no part of the conversation: the caller has no answer
            raise
        return stream.completion

    @property
    def tokens(self) -> list[int]:
        """The tokens in the KV cache: all tokens of the conversation but the last one that was generated."""
        return self._session.tokens[0]

    def reset(self) -> None:
        """Start over, with the same system message."""
        with self._call:
            self._settle()
            self.messages = [
                message for message in self.messages[:1] if message["role"] == "system"
            ]

    def close(self) -> None:
        """End an open answer and give the cache's memory back. The chat cannot be used afterwards."""
        with self._call:
            self._settle()
            self._session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _settle(self) -> None:
        """An answer that nobody read to its end is part of the conversation as far as it was read. Raises UsageError
        where another thread is reading it."""
        stream = self._open
        if stream is not None:
            self._check_reader(stream)
            stream.close(wait=True)

    def _check_reader(self, stream: Stream) -> None:
        if stream.is_read_elsewhere():
            raise UsageError(
                "this chat is answering in another thread: wait for that answer, or close its"
                " stream first"
            )
