"""An opened artifact that generates text: prompts in, completions out. Every task is built on it.

It ties together the graph, the tokenizer, the options and the decode loop. It knows no task.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, Unpack, overload

from gptx.arguments import integer, is_list
from gptx.artifact.class_head import Head
from gptx.artifact.manifest import Manifest
from gptx.artifact.task import Task
from gptx.errors import PromptError, UsageError, shown
from gptx.generation.loop import Generation
from gptx.generation.loop import check_options as check_stops
from gptx.generation.options import MAX_NEW_TOKENS, Given, Options, takes_options
from gptx.generation.resolve_options import resolve
from gptx.generation.session import Session
from gptx.generation.stream import Completion, Stream, Transcript, run_to_end
from gptx.ort.graph import OnnxGraph
from gptx.text.chat_template import ChatTemplate, Message
from gptx.text.detokenizer import Detokenizer
from gptx.text.prefix import common_length
from gptx.text.stop_strings import StopSet, StopStrings
from gptx.text.tokenizer import Tokenizer

Prompt = str | Sequence[int]


class LoadedModel:
    """What all tasks need of an opened artifact: encode, generate, stream, sessions.

    `tokenizer` and `template` (the chat template) are None if the artifact has none.
    """

    def __init__(
        self,
        graph: OnnxGraph,
        *,
        tokenizer: Tokenizer | None,
        template: ChatTemplate | None = None,
        generation: Mapping[str, Any] | None = None,
        task: Task | None = None,
        head: Head | None = None,
    ) -> None:
        self._graph: OnnxGraph | None = graph
        self.manifest: Manifest = graph.manifest
        # the execution provider that runs the graph, by ONNX Runtime's name
        self.provider: str = graph.provider
        # the file that was opened: onnx/model.onnx, or one that gptx compile made
        self.graph: Path = graph.file
        # the graph of single rows, if the artifact has one (int8-fast)
        self.decode: Path | None = graph.decode_file
        self.tokenizer: Tokenizer | None = tokenizer
        self.template: ChatTemplate | None = template
        self.generation: dict[str, Any] = dict(generation or {})  # generation_config.json
        self.task: Task | None = task  # what it was fine-tuned for: gptx_task.json
        self.head: Head | None = head  # of a model that classifies by one

    @property
    def path(self) -> Path:
        return self.manifest.path

    @property
    def n_ctx(self) -> int:
        return self.manifest.model.n_ctx

    @property
    def takes_positions(self) -> bool:
        """True if the graph has an input of positions; otherwise it counts them itself."""
        return self._opened().takes_positions

    @overload
    def generate(self, prompt: str | list[int], **options: Unpack[Given]) -> Completion: ...
    @overload
    def generate(
        self, prompt: list[str] | list[list[int]], **options: Unpack[Given]
    ) -> list[Completion]: ...
    @takes_options
    def generate(
        self,
        prompt: Prompt | Sequence[Prompt],
        **options: Unpack[Given],
    ) -> Completion | list[Completion]:
        """Generate text that continues a prompt, and return all of it as a Completion.

        prompt: a text or its token ids. A list of prompts is decoded as one batch and gives a list
        of completions, each with the text that its prompt gives alone.

        The options have the names of transformers' `generate`. An option that the call does not
        give is taken from the artifact's generation_config.json. If that does not give it either,
        decoding is greedy (temperature 0) and ends after 256 new tokens. (The default model's
        generation_config.json asks for sampling: pass temperature=0 or a seed to get the same text
        each time.)

        max_new_tokens, min_new_tokens: the most and the least tokens to generate.
        temperature: 0 always takes the likeliest token; 1 draws with the model's own probabilities.
        top_k, top_p, min_p: which of the likeliest tokens may be drawn.
        repetition_penalty: above 1, tokens that stand in the text already become less likely.
        seed: of the random draws. Prompt i of a list draws with seed + i.
        stop: a string or several; the text ends before the first of them.
        stop_tokens: token ids that end the text, beside the artifact's own.

        Raises PromptError for a prompt that is empty, too long or no text; UsageError for options
        that make no sense.
        """
        began = time.perf_counter()
        self._need_language("generated")
        resolved = resolve(options, self.generation, max_new_tokens=MAX_NEW_TOKENS)
        batch = is_batch(prompt)
        prompts = [self.encode(one) for one in (prompt if batch else [prompt])]  # type: ignore[arg-type]
        with self.session(len(prompts)) as session:
            seeds = [
                None if resolved.seed is None else resolved.seed + row
                for row in range(len(prompts))
            ]
            generation = self._generation(session, prompts, resolved, seeds)
            stops = StopSet(resolved.stop)
            transcripts = [
                self._transcript(ids, ids, stops, seed) for ids, seed in zip(prompts, seeds)
            ]
            completions = run_to_end(generation, transcripts, began=began)
        return completions if batch else completions[0]

    @takes_options
    def stream(
        self,
        prompt: Prompt,
        **options: Unpack[Given],
    ) -> Stream:
        """Generate as `generate` does, and return a Stream: the text, piece by piece, while it is
        computed.

        The prompt, the options and the errors are those of `generate`. One default differs, as a
        reader can end a stream: if neither the call nor generation_config.json gives
        max_new_tokens, a stream goes on until the model ends the text or the context is full.
        """
        checked = self.stream_options(options)
        ids = self.encode(prompt)
        return self.stream_ids(ids, checked, context=ids)

    def session(self, batch_size: int = 1, *, size: int | None = None) -> Session:
        """Open a Session of `batch_size` rows: the step-level API, with token ids in and logits
        out.

        size: the most tokens that a row may hold. Memory for all of them is taken at once. Without
        it, the KV cache grows with use, up to the model's context.

        Raises UsageError for a wrong number, or if the memory for `size` cannot be had.
        """
        return Session(self._opened(), batch_size, size=size)

    def encode(self, prompt: Prompt) -> list[int]:
        """A prompt's token ids, with the special tokens that the tokenizer adds itself.

        Token ids are checked and returned. Raises PromptError for an empty text or ids outside the
        vocabulary, UsageError for a text if the artifact has no tokenizer.
        """
        if not isinstance(prompt, str):
            return self._token_ids(prompt)
        if self.tokenizer is None:
            raise UsageError(f"{self.path} has no tokenizer: give the prompt as token ids")
        if not prompt:
            raise PromptError("the prompt is empty: give some text to go on from")
        return self.tokenizer.encode(prompt)

    def _token_ids(self, prompt: Sequence[int]) -> list[int]:
        if not is_list(prompt) and not isinstance(prompt, Iterator):
            raise PromptError(
                f"a prompt is a text or a list of token ids, not {type(prompt).__name__}"
            )
        ids, last = [], self.manifest.model.vocab_size - 1
        for token in map(_token_id, prompt):  # one by one: a generator may be endless
            if not 0 <= token <= last:
                raise PromptError(
                    f"token id {shown(token)} is outside the model's vocabulary: 0 to {last}"
                )
            ids.append(token)
        return ids

    def need_chat(self) -> tuple[Tokenizer, ChatTemplate]:
        """The tokenizer and the chat template.

        Raises UsageError if the artifact lacks one of them.
        """
        self._need_language("generated")
        if self.tokenizer is None:
            raise UsageError(
                f"{self.path} has no tokenizer, so there is no chat: generate from token ids"
            )
        if self.template is None:
            raise UsageError(
                f"{self.path} has no chat template, so there is no chat: generate text from a prompt"
            )
        return self.tokenizer, self.template

    def chat_ids(self, messages: Sequence[Message]) -> list[int]:
        """The prompt of a conversation, as token ids that `generate` takes."""
        tokenizer, template = self.need_chat()
        return tokenizer.encode(template.render(messages), add_special_tokens=False)

    def stream_options(self, given: Mapping[str, Any]) -> Options:
        """Check a stream's options and fill in the artifact's own. Raises UsageError."""
        self._need_language("generated")
        options = resolve(given, self.generation, max_new_tokens=None)
        model, tokens = self.manifest.model, self.manifest.tokens
        tokenizer_vocab_size = tokens.vocab_size or model.vocab_size
        check_stops(
            options,
            (*tokens.eos, *options.stop_tokens),
            tokenizer_vocab_size=tokenizer_vocab_size,
            vocab_size=model.vocab_size,
        )
        return options

    def stream_ids(
        self,
        ids: list[int],
        options: Options,
        *,
        context: Sequence[int] = (),
        session: Session | None = None,
        on_end: Callable[[Completion], None] | None = None,
    ) -> Stream:
        """A Stream from checked token ids.

        context: the tokens before the new text. The detokenizer needs them to write the first piece
        as it stands behind that text, for instance with or without a space.
        session: a session whose KV cache may already hold the beginning of `ids`. Only the rest of
        `ids` is computed, and other tokens that the session holds are dropped.
        """
        began = time.perf_counter()
        owned = None if session else self.session()
        session = session or owned
        assert session is not None
        # at least the last token is fed, as its logits are needed
        session.rewind([min(common_length(session.tokens[0], ids), max(len(ids) - 1, 0))])
        generation = self._generation(session, [ids[session.lengths[0] :]], options, [options.seed])
        transcript = self._transcript(ids, context, StopSet(options.stop), options.seed)
        return Stream(generation, transcript, began=began, owned=owned, on_end=on_end)

    def close(self) -> None:
        """Give the weights' memory back, once the sessions that are still open are closed too.

        The model cannot be used afterwards.
        """
        graph, self._graph = self._graph, None  # at once: another thread may close it too
        if graph is not None:
            graph.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _need_language(self, what: str) -> None:
        if self.manifest.model.n_class:
            raise UsageError(
                f"{self.path} has a classification head in place of a language model's, so no text is {what}: take classify"
            )

    def _opened(self) -> OnnxGraph:
        if self._graph is None:
            raise UsageError("this model is closed")
        return self._graph

    def _generation(
        self,
        session: Session,
        prompts: list[list[int]],
        options: Options,
        seeds: Sequence[int | None],
    ) -> Generation:
        tokens = self.manifest.tokens
        return Generation(
            session,
            prompts,
            options,
            ends=tokens.eos,
            tokenizer_vocab_size=tokens.vocab_size,
            seeds=seeds,
        )

    def _transcript(
        self, ids: list[int], context: Sequence[int], stops: StopSet, seed: int | None
    ) -> Transcript:
        if self.tokenizer is None:
            return Transcript(None, None, len(ids), seed)
        strings = StopStrings(stops, self.tokenizer, ids)
        return Transcript(Detokenizer(self.tokenizer, context), strings, len(ids), seed)


def is_batch(prompt: Prompt | Sequence[Prompt]) -> bool:
    """True for a list of prompts, False for one prompt (a text, or token ids)."""
    return is_list(prompt) and len(prompt) > 0 and not _is_token_id(next(iter(prompt)))


def _is_token_id(value: object) -> bool:
    return integer(value) is not None or isinstance(value, bool)


def _token_id(value: Any) -> int:
    number = integer(value)
    if number is None:
        raise PromptError(
            f"a prompt is a text or a list of token ids, and this one holds {shown(value)}"
        )
    return number
