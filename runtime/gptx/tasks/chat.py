"""A conversation with a model: messages in, answers out."""

from __future__ import annotations

import time
import weakref
from typing import Self, Unpack

from gptx.arguments import text
from gptx.engine.control import Control
from gptx.engine.loaded_model import LoadedModel
from gptx.engine.stream import Stream
from gptx.errors import PromptError, UsageError, shown
from gptx.generation.one_thread import OneThread
from gptx.generation.option_keywords import Keywords, takes_options
from gptx.generation.options import Options
from gptx.generation.overflow import slide
from gptx.generation.row_plan import check_prompts
from gptx.generation.transcript import Completion
from gptx.text.prefix import common_length

Messages = list[dict[str, str]]  # [{"role": "user", "content": text}, ...]


class Chat:
    """A conversation. Model.chat begins one.

    The model keeps what it has read, so each turn computes only the new tokens (as long as
    cache_memory of gptx.load has room for it).

    Attributes:

    - messages: the conversation so far, [{"role": "system" | "user" | "assistant", "content":
      text}, ...]. An answer joins it when its stream ends or is closed.
    - tokens: the token ids that the model has read: the last prompt, and its answer without the
      last token, which was not fed to the model.

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
        self._opened: weakref.ref[Stream] | None = None
        self._closed = False
        self.tokens: list[int] = []
        self._asked: Messages = []  # the messages that the open stream answers
        self.messages: Messages = (
            [{"role": "system", "content": system}] if system is not None else []
        )

    @takes_options
    def stream(self, message: str, **options: Unpack[Keywords]) -> Stream:
        """Send a message, and return a Stream of the answer.

        Options are those of Model.generate, with one other default: without max_new_tokens (in the
        call or generation_config.json), an answer ends when the model ends it, or the context is
        full.

        The message and the answer join the conversation when the stream ends or is closed. An
        answer that was read half-way joins as far as it was read: when its stream is closed, when
        the next message is sent, or when nobody holds the stream any more.

        overflow="slide" leaves the oldest turns out once the context is full; the system message
        stays.

        Raises PromptError if the context has no room for the message, UsageError for wrong options;
        the conversation is then as it was before.
        """
        return self._ask(message, options, [])

    def _ask(self, message: str, options: Keywords, turns: list[Messages]) -> Stream:
        """Do what `stream` does. The messages up to this one are added to `turns`."""
        text("the message", message)
        checked, control = self._model.resolve_options(options)
        with self._call:
            return self._answer(message, checked, control, turns)

    def _answer(
        self,
        message: str,
        options: Options,
        control: Control,
        turns: list[Messages],
    ) -> Stream:
        began = time.perf_counter()
        if self._closed:
            raise UsageError("this chat is closed")
        self._check_step()
        question = {"role": "user", "content": message}
        asked = [*self._conversation(), question]
        # Checked before the open answer is closed: an error then leaves the chat as it was.
        ids, keep = self._prompt(asked, options, control)
        self._settle()
        if self.messages != asked[:-1]:  # another thread read on while the answer was closed
            asked = [*self.messages, question]
            ids, keep = self._prompt(asked, options, control)

        # The stream must not keep a chat alive that the app has dropped
        this = weakref.ref(self)

        def answered(completion: Completion) -> None:
            if (chat := this()) is not None and chat._asked is asked:
                chat.tokens = [*ids, *completion.token_ids[:-1]]
                chat.messages = [*asked, {"role": "assistant", "content": completion.text or ""}]
                chat._opened = None

        stream = self._model.stream_ids(
            ids, options, control, (), began, keep=keep, on_end=answered
        )
        turns.append(asked)
        self._asked, self._opened = asked, weakref.ref(stream)
        return stream

    @property
    def _open(self) -> Stream | None:
        """The open answer, or None. Only the app keeps it alive: if dropped, it ends itself."""
        return None if self._opened is None else self._opened()

    def _conversation(self) -> Messages:
        """The messages, with the open answer as far as it was read.

        Raises UsageError if another thread is reading it.
        """
        stream = self._open
        if stream is None:
            return self.messages
        self._check_reader(stream)
        answer = {"role": "assistant", "content": stream.completion.text or ""}
        return [*self._asked, answer]

    def _prompt(self, asked: Messages, options: Options, control: Control) -> tuple[list[int], int]:
        """The conversation as token ids, and how many of them are the system message.

        Raises PromptError if the context has no room for it. If control.overflow is "slide", the
        oldest turns are left out then.
        """
        ids, keep = self._model.chat_ids(asked), 0
        if control.overflow == "slide":
            keep = self._system_tokens(asked, ids)
            if keep >= self._model.n_ctx:
                raise PromptError(
                    f"the system message has {keep} tokens, and the model's context holds"
                    f" {self._model.n_ctx}: make it shorter"
                )
            if len(ids) > self._model.n_ctx:
                ids = slide(ids, keep, self._model.n_ctx)
        if len(ids) > self._model.n_ctx:
            raise PromptError(
                f"the conversation has {len(ids)} tokens with this message, and the model's context"
                f" holds {self._model.n_ctx}: start a new one, or ask something shorter"
            )
        check_prompts([ids], n_ctx=self._model.n_ctx, max_length=options.rules.max_length)
        return ids, keep

    def _system_tokens(self, asked: Messages, ids: list[int]) -> int:
        """How many of the first tokens of a conversation are those of its system message."""
        if asked[0]["role"] != "system":
            return 0
        one, other = (
            self._model.chat_ids([asked[0], {"role": "user", "content": content}])
            for content in ("a", "b")
        )
        return min(common_length(one, other), common_length(one, ids))

    @takes_options
    def send(self, message: str, **options: Unpack[Keywords]) -> Completion:
        """Send a message, and return the whole answer as a Completion.

        Options and errors are those of `stream`. If an error or Ctrl-C interrupts the answer,
        neither it nor the message joins the conversation.
        """
        turns: list[Messages] = []
        try:
            stream = self._ask(message, options, turns)
            for _ in stream:
                pass
            return stream.completion
        except BaseException:
            if turns and self._asked is turns[0]:  # else it was refused
                self._forget_turn()
            raise

    def _forget_turn(self) -> None:
        """Take the last turn out of the conversation: its caller got no answer."""
        stream, self._opened = self._open, None
        self.messages, self._asked = self._asked[:-1], []
        if stream is not None:
            stream.close()

    def reset(self) -> None:
        """Start over: drop all messages but the system message."""
        with self._call:
            self._check_step()
            self._settle()
            self.messages = [
                message for message in self.messages[:1] if message["role"] == "system"
            ]

    def close(self) -> None:
        """End an open answer. The chat cannot be used afterwards."""
        with self._call:
            self._check_step()
            self._settle()
            self._closed = True

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

    def _check_step(self) -> None:
        """Raise UsageError in a function of the app that is called while the open answer grows."""
        if self._open is not None and self._model.engine.is_busy_here():
            raise UsageError(
                "this chat is answering: call it once the answer has ended, neither from on_token"
                " nor from logits_processor"
            )

    def _check_reader(self, stream: Stream) -> None:
        """Raise UsageError if another thread is reading this stream."""
        if stream.is_read_elsewhere():
            raise UsageError(
                "this chat is answering in another thread: wait for that answer, or close its"
                " stream first"
            )
