"""An opened artifact that encodes prompts and generates text: the base class of gptx.Model.

It joins the graph, the tokenizer, the options and the token loop. The tasks (chat, classify, score,
summarize) are built on it; it knows none of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, Unpack, overload

from gptx.artifact.class_head import Head
from gptx.artifact.manifest import Manifest
from gptx.artifact.task import Task
from gptx.errors import UsageError
from gptx.generation.dry_breakers import breakers_as_ids
from gptx.generation.loop import Generation, check_options
from gptx.generation.option_keywords import Given, takes_options
from gptx.generation.options import MAX_NEW_TOKENS, Options
from gptx.generation.prompt import Prompt, encode, is_batch
from gptx.generation.resolve_options import resolve
from gptx.generation.session import Session
from gptx.generation.stream import Completion, Stream, Transcript, run_to_end
from gptx.ort.graph import OnnxGraph
from gptx.text.chat_template import ChatTemplate, Message
from gptx.text.detokenizer import Detokenizer
from gptx.text.prefix import common_length
from gptx.text.stop_strings import StopSet, StopStrings
from gptx.text.tokenizer import Tokenizer


class LoadedModel:
    """An opened artifact. gptx.Model, its only subclass, documents the attributes and threads."""

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
        self._graph: OnnxGraph | None = graph  # None: the model is closed
        self.manifest: Manifest = graph.manifest
        self.provider: str = graph.provider
        self.graph: Path = graph.file
        self.decode: Path | None = graph.decode_file
        self.kernels: str | None = graph.kernels
        self.tokenizer: Tokenizer | None = tokenizer
        self.template: ChatTemplate | None = template
        self.generation: dict[str, Any] = dict(generation or {})
        self.task: Task | None = task
        self.head: Head | None = head

    @property
    def path(self) -> Path:
        """The artifact's folder."""
        return self.manifest.path

    @property
    def n_ctx(self) -> int:
        """The model's context, in tokens: the most that prompt and new text may hold together."""
        return self.manifest.model.n_ctx

    @property
    def takes_positions(self) -> bool:
        """True if position_ids is an input of the graph, False if the graph counts positions."""
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
        """Generate text that continues a prompt, and return all of it.

        prompt: a text, or a list of token ids. A list of prompts is decoded as one batch and gives
        a list of completions. Each text is the same as without the other prompts.

        Options have the names of transformers' `generate`:

        - max_new_tokens: the most tokens to generate.
        - min_new_tokens: the model may not end the text before it has this many new tokens.
        - temperature: 0 takes the likeliest token each time (greedy decoding). Above 0, tokens are
          drawn at random from softmax(logits / temperature).
        - top_k, top_p, min_p: draw only from the likeliest tokens. They need a temperature.
        - repetition_penalty: above 1, tokens that occurred before become less likely.
        - typical_p, epsilon_cutoff, eta_cutoff, top_n_sigma, xtc_probability, xtc_threshold,
          presence_penalty, frequency_penalty, no_repeat_ngram_size, dry_multiplier and others:
          docs/reference/options.md explains them.
        - seed: the seed of the random draws. Prompt i of a list draws with seed + i. Without a
          seed, one is chosen at random; Completion.seed reports it.
        - stop: a string, or a list of strings. The text ends before the first that occurs.
        - stop_tokens: token ids that end the text, in addition to the model's own.

        An option that is not given comes from the artifact's generation_config.json. If the file
        does not set it either, decoding is greedy and ends after 256 new tokens. The file of the
        default model asks for sampling: pass temperature=0, or a seed, to get the same text each
        time.

        Raises PromptError for a prompt that is empty, too long or neither text nor token ids,
        UsageError for wrong options, GptxError if there is too little memory.
        """
        began = time.perf_counter()
        self._need_language("generated")
        resolved = self._resolve(options, MAX_NEW_TOKENS)
        batch = is_batch(prompt)
        given: Any = prompt if batch else [prompt]
        prompts = [self.encode(one) for one in given]
        seeds = [
            None if resolved.seed is None else resolved.seed + row for row in range(len(prompts))
        ]
        with self.session(len(prompts)) as session:
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
        """Generate as `generate` does, and return a Stream that yields the text while it grows.

        The prompt is one text, or one list of token ids. Options and their defaults are those of
        `generate`, so both give the same text.

        Raises PromptError, UsageError and GptxError as `generate` does, before any text is read.
        """
        checked = self.stream_options(options, max_new_tokens=MAX_NEW_TOKENS)
        ids = self.encode(prompt)
        return self.stream_ids(ids, checked, context=ids)

    def session(self, batch_size: int = 1, *, size: int | None = None) -> Session:
        """Open a Session, the step-level interface: token ids in, logits out.

        batch_size: the number of rows (sequences).
        size: the most tokens that each row may hold. Memory for all of them is allocated at once.
        Without it, a row may hold n_ctx tokens, and the KV cache grows with use.

        Raises UsageError for values out of range, GptxError if there is too little memory.
        """
        return Session(self._opened(), batch_size, size=size)

    def encode(self, prompt: Prompt) -> list[int]:
        """The token ids of a prompt, with the special tokens that the tokenizer adds (bos).

        A list of token ids is checked and returned. Raises PromptError for an empty text or an id
        outside the vocabulary, UsageError for a text if the artifact has no tokenizer.
        """
        return encode(
            prompt,
            tokenizer=self.tokenizer,
            vocab_size=self.manifest.model.vocab_size,
            path=self.path,
        )

    def need_chat(self) -> tuple[Tokenizer, ChatTemplate]:
        """The tokenizer and the chat template. Raises UsageError if the artifact lacks one."""
        self._need_language("generated")
        if self.tokenizer is None:
            raise UsageError(
                f"{self.path} has no tokenizer, so there is no chat: generate from token ids"
            )
        if self.template is None:
            raise UsageError(
                f"{self.path} has no chat template, so there is no chat: "
                "generate text from a prompt"
            )
        return self.tokenizer, self.template

    def chat_ids(self, messages: Sequence[Message]) -> list[int]:
        """A conversation in the model's chat template, as token ids that `generate` takes.

        messages: [{"role": "system" | "user" | "assistant", "content": text}, ...].

        Raises UsageError without a chat template or if the template refuses the messages,
        PromptError if they are no messages, ArtifactError if the template is broken.
        """
        tokenizer, template = self.need_chat()
        return tokenizer.encode(template.render(messages), add_special_tokens=False)

    def stream_options(
        self, given: Mapping[str, Any], *, max_new_tokens: int | None = None
    ) -> Options:
        """The checked options of a stream: the call's, else those of generation_config.json.

        max_new_tokens: the default of that option. None: only the context limits the text.

        Raises UsageError for wrong options or a classification model.
        """
        self._need_language("generated")
        options = self._resolve(given, max_new_tokens)
        model, tokens = self.manifest.model, self.manifest.tokens
        check_options(
            options,
            (*tokens.eos, *options.stop_tokens),
            tokenizer_vocab_size=tokens.vocab_size or model.vocab_size,
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
        """A Stream that continues checked token ids.

        context: the tokens in front of the new text, for the detokenizer. They decide whether the
        text begins with a space.
        session: a session of one row, to reuse its KV cache. Tokens that the row shares with the
        beginning of `ids` are kept, its other tokens are dropped, and the rest of `ids` is
        computed. Without it, the stream opens a session and closes it at its end.
        on_end: called with the Completion when the stream ends or is closed.

        Raises PromptError if `ids` are empty or do not fit into the context.
        """
        began = time.perf_counter()
        owned = None if session else self.session()
        session = session or owned
        assert session is not None
        # The last token is always computed again, as its logits are needed.
        session.rewind([min(common_length(session.tokens[0], ids), max(len(ids) - 1, 0))])
        generation = self._generation(session, [ids[session.lengths[0] :]], options, [options.seed])
        transcript = self._transcript(ids, context, StopSet(options.stop), options.seed)
        return Stream(generation, transcript, began=began, owned=owned, on_end=on_end)

    def close(self) -> None:
        """Free the weights' memory, once all open sessions, streams and chats are closed, too.

        Afterwards the model cannot be used. Leaving a `with` block closes it as well.
        """
        # Taken before it is closed, so that a second thread that calls close finds None
        graph, self._graph = self._graph, None
        if graph is not None:
            graph.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _resolve(self, given: Mapping[str, Any], max_new_tokens: int | None) -> Options:
        options = resolve(given, self.generation, max_new_tokens=max_new_tokens)
        return breakers_as_ids(options, self.tokenizer)

    def _need_language(self, done: str) -> None:
        """Raise UsageError for a classification model. done: the message's verb ("generated")."""
        if self.manifest.model.n_class:
            raise UsageError(
                f"{self.path} is a classification model, so no text can be {done}: use classify"
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
            eos=tokens.eos,
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
