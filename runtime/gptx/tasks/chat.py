"""A conversation with a model: messages in, answers out. The KV cache is kept between turns."""

from __future__ import annotations

from typing import Self, Unpack

from gptx.arguments import text
from gptx.errors import PromptError, UsageError, shown
from gptx.generation.loaded_model import LoadedModel
from gptx.generation.loop import check_prompts
from gptx.generation.one_thread import OneThread
from gptx.generation.option_keywords import Given, takes_options
from gptx.generation.options import Options
from gptx.generation.stream import Completion, Stream


class Chat:
    """A conversation. Model.chat begins one.

    The KV cache is kept between turns, so each turn computes only the new tokens. `close`, or
    leaving a `with` block, frees the cache's memory.

    Attributes:

    - messages: the conversation so far, [{"role": "system" | "user" | "assistant", "content":
      text}, ...]. An answer joins it when its stream ends or is closed.
    - tokens: the token ids in the KV cache.

    Threads: any thread may call a chat, but it gives one answer at a time. While another thread
    reads an answer, every method raises UsageError. The stream of an answer may be closed from any
    thread.
    """

    def __init__(self, model: LoadedModel, *, system: str | None = None) -> None:
        if not isinstance(model, LoadedModel):
            raise UsageError(f"model is {shown(model)}, expected what gptx.load returns")
        model.need_chat()
        if system is not None and not isinstance(system, str):
            raise UsageError(f"system is {shown(system)}, expected a text")
        self._call = OneThread(
            "another thread is calling this chat: wait until it is done, or give each thread a chat"
            " of its own"
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
        """Send a message, and return a Stream of the answer.

        Options are those of Model.generate, with one other default: without max_new_tokens (in the
        call or generation_config.json), an answer ends when the model ends it, or the context is
        full.

        The message and the answer join the conversation when the stream ends or is closed. If the
        next message is sent before that, the answer is closed first and joins the conversation as
        far as it was read.

        Raises PromptError if the context has no room for the message, UsageError for wrong options;
        the conversation is then as it was before.
        """
        text("the message", message)
        checked = self._model.stream_options(options)
        with self._call:
            return self._answer(message, checked)

    def _answer(self, message: str, options: Options) -> Stream:
        question = {"role": "user", "content": message}
        asked = [*self._conversation(), question]
        # Checked before the open answer is closed: an error then leaves the chat as it was.
        ids = self._prompt(asked, options)
        self._settle()
        if self.messages != asked[:-1]:  # another thread read on while the answer was closed
            asked = [*self.messages, question]
            ids = self._prompt(asked, options)

        def answered(completion: Completion) -> None:
            self.messages = [*asked, {"role": "assistant", "content": completion.text or ""}]
            self._open = None

        self._asked = asked
        self._open = self._model.stream_ids(ids, options, session=self._session, on_end=answered)
        return self._open

    def _conversation(self) -> list[dict[str, str]]:
        """The messages, with the open answer as far as it was read.

        Raises UsageError if another thread is reading it.
        """
        if self._open is None:
            return self.messages
        self._check_reader(self._open)
        answer = {"role": "assistant", "content": self._open.completion.text or ""}
        return [*self._asked, answer]

    def _prompt(self, asked: list[dict[str, str]], options: Options) -> list[int]:
        """The conversation as token ids. Raises PromptError if the context has no room for it."""
        ids = self._model.chat_ids(asked)
        if len(ids) > self._session.limit:
            raise PromptError(
                f"the conversation has {len(ids)} tokens with this message, and the model's context"
                f" holds {self._session.limit}: start a new one, or ask something shorter"
            )
        check_prompts([ids], [0], n_ctx=self._session.limit, max_length=options.rules.max_length)
        return ids

    @takes_options
    def send(self, message: str, **options: Unpack[Given]) -> Completion:
        """Send a message, and return the whole answer as a Completion.

        Options and errors are those of `stream`. If an error or Ctrl-C interrupts the answer,
        neither it nor the message joins the conversation.
        """
        stream = self.stream(message, **options)
        try:
            for _ in stream:
                pass
        except BaseException:
            self._open = None  # the caller got no answer, so the turn is no part of the chat
            raise
        return stream.completion

    @property
    def tokens(self) -> list[int]:
        """The token ids in the KV cache.

        After an answer, the last token that was generated is missing: it was not fed to the model.
        """
        return self._session.tokens[0]

    def reset(self) -> None:
        """Start over: drop all messages but the system message."""
        with self._call:
            self._settle()
            self.messages = [
                message for message in self.messages[:1] if message["role"] == "system"
            ]

    def close(self) -> None:
        """End an open answer, and free the memory of the KV cache.

        The chat cannot be used afterwards.
        """
        with self._call:
            self._settle()
            self._session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _settle(self) -> None:
        """Close the open answer, so that what was read of it joins the conversation.

        Raises UsageError if another thread is reading it.
        """
        stream = self._open
        if stream is not None:
            self._check_reader(stream)
            stream.close(wait=True)

    def _check_reader(self, stream: Stream) -> None:
        """Raise UsageError if another thread is reading this stream."""
        if stream.is_read_elsewhere():
            raise UsageError(
                "this chat is answering in another thread: wait for that answer, or close its"
                " stream first"
            )
