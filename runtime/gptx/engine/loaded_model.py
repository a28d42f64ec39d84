"""An opened artifact that encodes prompts and generates text: the base class of gptx.Model.

It joins the graph, the tokenizer, the options and the engine. The tasks (chat, classify, score,
summarize) are built on it; it knows none of them.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Self, Unpack, overload

from gptx.artifact.class_head import Head
from gptx.artifact.manifest import Manifest
from gptx.artifact.task import Task
from gptx.engine.awaited import OpenStream, completions, pieces
from gptx.engine.control import NAMES, Control, control_of, is_cancelled
from gptx.engine.engine import Engine
from gptx.engine.grammar import read_grammar
from gptx.engine.matcher import Matcher
from gptx.engine.new_text import check_together, new_text, without_forced
from gptx.engine.request import Request
from gptx.engine.stats import Stats
from gptx.engine.stream import Stream
from gptx.engine.structure import GrammarCompiler, warn_of_notes
from gptx.errors import PromptError, UsageError
from gptx.generation.dry_breakers import breakers_as_ids
from gptx.generation.option_keywords import Keywords, takes_options
from gptx.generation.options import MAX_NEW_TOKENS, Options
from gptx.generation.prompt import Prompt, encode, is_batch
from gptx.generation.resolve_options import resolve
from gptx.generation.row_plan import check_options, check_prompts
from gptx.generation.session import Session
from gptx.generation.transcript import Completion, Transcript
from gptx.kv_cache.memory_limit import default_cache_memory
from gptx.ort.graph import OnnxGraph
from gptx.text.chat_template import ChatTemplate, Message
from gptx.text.detokenizer import Detokenizer
from gptx.text.stop_strings import StopSet, StopStrings
from gptx.text.tokenizer import Tokenizer

MAX_ROWS = 8  # texts that grow at the same time
MAX_QUEUE = 1024  # requests that wait for a row
PREFIX_MEMORY = 256_000_000  # bytes of stored prefixes, unless the app gives cache_memory


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
        max_rows: int = MAX_ROWS,
        cache_memory: int | None = None,
        speculate: bool = True,
        draft: OnnxGraph | None = None,
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
        self.engine: Engine = Engine(
            graph,
            max_rows=max_rows,
            memory=cache_memory or default_cache_memory(),
            prefix_memory=cache_memory or PREFIX_MEMORY,
            max_queue=max(MAX_QUEUE, 4 * max_rows),  # two lists of prompts, see `generate`
            speculate=speculate,
            draft=draft,
        )

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
    def generate(self, prompt: str | list[int], **options: Unpack[Keywords]) -> Completion: ...
    @overload
    def generate(
        self, prompt: list[str] | list[list[int]], **options: Unpack[Keywords]
    ) -> list[Completion]: ...
    @takes_options
    def generate(
        self,
        prompt: Prompt | Sequence[Prompt],
        **options: Unpack[Keywords],
    ) -> Completion | list[Completion]:
        """Generate text that continues a prompt, and return all of it.

        prompt: a text, or a list of token ids. A list of prompts is decoded as one batch and gives
        a list of completions. Text i is what its prompt gives alone, with the seed `seed + i`.

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
        - seed: the seed of the random draws. Text i of a call draws with seed + i. Without a seed,
          one is chosen at random; Completion.seed reports it.
        - num_return_sequences=n gives n texts for each prompt, as a list: the texts of the first
          prompt, then those of the second. They are drawn, or the best of a beam search.
        - num_beams, length_penalty, early_stopping: search for the likeliest text (beam search). A
          Stream then gives its text at the end. max_rows of the model limits num_beams.
        - guidance_scale: above 1 pushes the text away from negative_prompt, a text or token ids;
          without one, away from what the prompt's last token alone leads to.
        - stop: a string, or a list of strings. The text ends before the first that occurs.
        - stop_tokens: token ids that end the text, in addition to the model's own.

        These end a text early, or let an app take part:

        - max_time: seconds after which the text ends, with what was generated so far.
        - cancel: a threading.Event. Once another thread sets it, the text ends.
        - overflow: what happens when the context is full. "stop" ends the text. "slide" goes on
          with the newest tokens, which are read anew, as a prompt would be.
        - response_format: the text follows a JSON schema, a regex or a Lark grammar, given as a
          schema (a dict, or JSON text) or in OpenAI's spelling; json_schema=schema for short. Needs
          the package llguidance. docs/how-to/structure.md explains it.
        - logits_processor: a function of the tokens so far (the prompt's, too) and the logits, a
          float32 array (vocab_size,). It changes them in place, or returns others.
        - on_token: a function that gets each new token and its text. An error in one of these two
          functions ends this text alone, and is raised here.

        - logprobs: True gives the log-probability of each new token (Completion.logprobs), and
          top_logprobs=n those of the n likeliest (Completion.top_logprobs). They are the model's
          own, before temperature and all other options. prompt_logprobs=True gives those of the
          prompt's tokens, too (Completion.prompt_logprobs, prompt_top_logprobs).

        An option that is not given comes from the artifact's generation_config.json. If the file
        does not set it either, decoding is greedy and ends after 256 new tokens. The file of the
        default model asks for sampling: pass temperature=0, or a seed, to get the same text each
        time.

        Raises PromptError for a prompt that is empty, too long or neither text nor token ids,
        UsageError for wrong options, QueueFullError if too many calls came at the same time,
        GptxError if there is too little memory.
        """
        found, growing = [], deque[Stream]()
        try:
            for open_one in self._calls(_prompts(prompt), options):
                growing.append(open_one(continues=bool(growing or found)))
                if len(growing) > 2 * self.engine.max_rows:  # the queue holds no more than needed
                    found += growing.popleft().results()
            for stream in growing:
                found += stream.results()
        finally:
            for stream in growing:
                stream.close()
        return found if _is_several(prompt, options) else found[0]

    @takes_options
    def stream(
        self,
        prompt: Prompt,
        **options: Unpack[Keywords],
    ) -> Stream:
        """Generate as `generate` does, and return a Stream that yields the text while it grows.

        The prompt is one text, or one list of token ids. Options and their defaults are those of
        `generate`, so both give the same text.

        Raises PromptError, UsageError and GptxError as `generate` does, before any text is read.
        """
        return self._call(prompt, options)()

    @takes_options
    def submit(self, prompt: Prompt, **options: Unpack[Keywords]) -> Stream:
        """Generate in the background, and return a Stream at once.

        The text grows although nobody reads it: `result` waits for all of it, `cancel` ends it
        early, and iterating gives its pieces. The prompt, options and errors are those of `stream`.
        """
        return self._call(prompt, options)(unattended=True)

    @overload
    async def generate_async(
        self, prompt: str | list[int], **options: Unpack[Keywords]
    ) -> Completion: ...
    @overload
    async def generate_async(
        self, prompt: list[str] | list[list[int]], **options: Unpack[Keywords]
    ) -> list[Completion]: ...
    @takes_options
    async def generate_async(
        self, prompt: Prompt | Sequence[Prompt], **options: Unpack[Keywords]
    ) -> Completion | list[Completion]:
        """Do what `generate` does, for asyncio: the event loop goes on meanwhile.

        Cancelling the task ends the text.
        """
        calls = await self._calls_async(_prompts(prompt), options)
        found = await completions(calls, at_once=2 * self.engine.max_rows)
        return found if _is_several(prompt, options) else found[0]

    @takes_options
    async def stream_async(self, prompt: Prompt, **options: Unpack[Keywords]) -> AsyncIterator[str]:
        """Do what `stream` does, for asyncio: `async for piece in model.stream_async(...)`.

        Leaving the loop, or cancelling the task, ends the text.
        """
        (open_one,) = await self._calls_async([prompt], options, one_text=True)
        async for piece in pieces(open_one):
            yield piece

    def stats(self) -> Stats:
        """What the model is doing: requests that have a row or wait for one, tokens, memory."""
        return self.engine.stats()

    def save_prefixes(self, path: str | Path) -> None:
        """Write the prefix cache to a safetensors file, for `load_prefixes`.

        It holds the beginnings of texts that the model has read: prompts, examples, turns of chats.
        A file of this name is replaced. Raises OutputError if the file cannot be written; the one
        that was there stays.
        """
        self._opened()
        self.engine.save_prefixes(path)

    def load_prefixes(self, path: str | Path) -> None:
        """Add what `save_prefixes` wrote, so that texts which begin so need not be read again.

        The file belongs to the same graph, weights and type of cache, and to the same kernel order
        of native operators (or the same ONNX Runtime, without them). Raises ArtifactError for
        another or a damaged file.
        """
        self._opened()
        self.engine.load_prefixes(path)

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

    def resolve_options(
        self,
        given: Mapping[str, Any],
        *,
        max_new_tokens: int | None = None,
        one_text: bool = True,
    ) -> tuple[Options, Control]:
        """The checked options of a text: the call's, else those of generation_config.json.

        max_new_tokens: the default of that option. None: only the context limits the text.
        one_text: the call gives one text, and has no place for several.

        Raises UsageError for wrong options, a grammar that is refused or a classification model.
        """
        self._need_language("generated")
        options, control = control_of(given, self.generation)
        generation = without_forced(self.generation, options, control)
        resolved = resolve(options, generation, max_new_tokens=max_new_tokens, also=NAMES)
        resolved = breakers_as_ids(resolved, self.tokenizer)
        model, tokens = self.manifest.model, self.manifest.tokens
        check_options(
            resolved,
            (*tokens.eos, *resolved.stop_tokens),
            tokenizer_vocab_size=tokens.vocab_size or model.vocab_size,
            vocab_size=model.vocab_size,
        )
        check_together(resolved, control)
        if one_text and resolved.num_return_sequences != 1:
            raise UsageError(
                f"num_return_sequences is {resolved.num_return_sequences}, and this call gives one"
                " text: use generate or generate_async"
            )
        if control.negative_prompt is not None:
            negative = self.encode(control.negative_prompt)
            check_prompts([negative], n_ctx=self.n_ctx, max_length=None)
            control = replace(control, negative_prompt=negative)
        if control.grammar is not None:  # here, where generate_async is not in the event loop
            self._grammars.compile(control.grammar)
        return resolved, control

    def _call(self, prompt: Prompt, given: Mapping[str, Any]) -> OpenStream:
        """The function that opens the Stream of a call for one text."""
        return self._calls([prompt], given, one_text=True)[0]

    def _calls(
        self,
        given_prompts: Sequence[Prompt],
        given: Mapping[str, Any],
        *,
        one_text: bool = False,
    ) -> list[OpenStream]:
        """For each text of a call, a function that opens its Stream. All are checked before.

        Text i draws with seed + i. The texts of one beam search share a Stream.
        """
        began = time.perf_counter()
        options, control = self.resolve_options(
            given, max_new_tokens=MAX_NEW_TOKENS, one_text=one_text
        )
        prompts = self._encode(given_prompts)
        check_prompts(prompts, n_ctx=self.n_ctx, max_length=options.rules.max_length)
        stops = StopSet(options.stop)
        if options.num_beams == 1:
            prompts = [ids for ids in prompts for _ in range(options.num_return_sequences)]
        seeds = [
            None if options.seed is None else (options.seed + row) % 2**128
            for row in range(len(prompts))
        ]
        return [
            partial(
                self.stream_ids, ids, replace(options, seed=seed), control, ids, began, stops=stops
            )
            for ids, seed in zip(prompts, seeds)
        ]

    def _encode(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """Encode several prompts. A PromptError says which of them is wrong."""
        found = []
        for number, prompt in enumerate(prompts, 1):
            try:
                found.append(self.encode(prompt))
            except PromptError as error:
                if len(prompts) == 1:
                    raise
                raise PromptError(f"prompt {number} of {len(prompts)}: {error}") from error
        return found

    async def _calls_async(
        self, prompts: Sequence[Prompt], given: Mapping[str, Any], *, one_text: bool = False
    ) -> list[OpenStream]:
        """Do what `_calls` does. The event loop goes on while a grammar is compiled."""
        grammar = read_grammar(given.get("response_format"), given.get("json_schema"))
        if grammar is not None and (begun := self._grammars.begin(grammar)):
            warn_of_notes(await asyncio.wrap_future(begun))
        return self._calls(prompts, given, one_text=one_text)

    def stream_ids(
        self,
        ids: list[int],
        options: Options,
        control: Control,
        context: Sequence[int],
        began: float,
        *,
        stops: StopSet | None = None,
        keep: int = 0,
        on_end: Callable[[Completion], None] | None = None,
        on_step: Callable[[], object] | None = None,
        unattended: bool = False,
        continues: bool = False,
    ) -> Stream:
        """A Stream that continues checked token ids.

        context: the tokens in front of the new text, for the detokenizer. They decide whether the
        text begins with a space. began: time.perf_counter() at the call. stops: options.stop,
        prepared. keep: the first tokens that a text keeps when it outgrows the context.
        on_end: called with the Completion when the stream ends or is closed. on_step,
        unattended, continues: see Request.
        """
        self._opened()
        detokenizer = strings = None
        if self.tokenizer is not None:
            detokenizer = Detokenizer(self.tokenizer, context)
            strings = StopStrings(stops or StopSet(options.stop), self.tokenizer, ids)
        negative: Any = control.negative_prompt  # token ids: resolve_options has encoded it
        work = new_text(
            ids,
            options,
            control,
            Transcript(detokenizer, strings, len(ids), options.seed, began),
            manifest=self.manifest,
            keep=keep,
            matcher=self._matcher(control, options),
            negative=negative,
        )
        request = Request(
            work,
            deadline=None if control.max_time is None else began + control.max_time,
            cancelled=is_cancelled(control.cancel),
            on_step=on_step,
            unattended=unattended,
            continues=continues,
        )
        stream = Stream(self.engine, request, work, on_end=on_end)
        self.engine.submit(request)
        return stream

    def _matcher(self, control: Control, options: Options) -> Matcher | None:
        """The matcher of a text's grammar."""
        if control.grammar is None:
            return None
        return self._grammars.compile(control.grammar).matcher(options.stop_tokens)

    @cached_property
    def _grammars(self) -> GrammarCompiler:
        if self.tokenizer is None:
            raise UsageError(f"{self.path} has no tokenizer, so no text can follow a grammar")
        model, tokens = self.manifest.model, self.manifest.tokens
        return GrammarCompiler(self.tokenizer, vocab_size=model.vocab_size, end_tokens=tokens.eos)

    def close(self) -> None:
        """End all texts, and free the memory of the weights once all sessions are closed, too.

        Afterwards the model cannot be used. Leaving a `with` block closes it as well.
        """
        # Taken before it is closed, so that a second thread that calls close finds None
        graph, self._graph = self._graph, None
        if graph is not None:
            self.engine.close()
            graph.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

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


def _is_several(prompt: Prompt | Sequence[Prompt], options: Mapping[str, Any]) -> bool:
    """Whether a call gives a list of texts."""
    return is_batch(prompt) or options.get("num_return_sequences") not in (None, 1)


def _prompts(prompt: Prompt | Sequence[Prompt]) -> Sequence[Prompt]:
    """The prompts of a call that takes one prompt or a list of them."""
    several: Any = prompt if is_batch(prompt) else [prompt]
    return several
