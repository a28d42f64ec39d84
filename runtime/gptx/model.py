"""gptx.load and gptx.Model: an artifact's path in, an opened model out. Each task is a method."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Unpack, overload

from gptx.arguments import count, is_list
from gptx.artifact.class_head import head_of
from gptx.artifact.json_files import read_side_file
from gptx.artifact.manifest import Manifest, read_manifest
from gptx.artifact.task import Example, read_task
from gptx.engine.loaded_model import MAX_ROWS, LoadedModel
from gptx.engine.open_draft import open_draft
from gptx.errors import ArtifactError, PromptError, UsageError, shown, warn
from gptx.generation.generation_config import unsupported_in_words
from gptx.generation.option_keywords import Keywords, takes_options
from gptx.generation.prompt import Prompt
from gptx.kv_cache.memory_limit import size_in_bytes
from gptx.ort.device import check_device
from gptx.ort.graph import open_graph
from gptx.tasks.chat import Chat
from gptx.tasks.classify import Classification, Normalization, classify
from gptx.tasks.score import Score, score
from gptx.tasks.summarize import Summary, summarize
from gptx.text.chat_template import load_template
from gptx.text.tokenizer import Tokenizer, load_tokenizer

DEFAULT_MODEL = Path(__file__).parent / "default_model"


def load(
    path: str | Path | None = None,
    *,
    device: str = "cpu",
    threads: int | None = None,
    adjust_memory: bool = True,
    map_weights: bool = False,
    max_rows: int = MAX_ROWS,
    cache_memory: int | str | None = None,
    speculate: bool = True,
    draft: str | Path | None = None,
) -> Model:
    """Open an artifact and return it as a Model.

    path: the artifact's folder. None: the model that ships with gptx.

    device: "cpu", "cuda" (raises ProviderError if CUDA cannot be used) or "auto" (CUDA if it can be
    used, else the CPU).

    threads: CPU threads that compute. None: one for each core.

    adjust_memory: let gptx adjust the memory of this process (Linux, CPU only). After loading, it
    gives memory that was needed only for loading back to the operating system. After 128 runs of
    the graph, it moves the weights into huge pages (2 MB), which makes decoding 4 to 10% faster.
    Results do not change. Pass False if your app manages its memory itself.

    map_weights: read the packed weights of a compiled artifact in place, in the file that `gptx
    compile` wrote. Processes that do so share the memory (not on Windows). By default they are
    copied into huge pages, which makes decoding faster.

    max_rows: the most texts that grow at the same time. Others wait in a queue.

    cache_memory: the most memory for the KV cache of these texts, and for the prefix cache: the
    beginnings of texts, kept so that they need not be read again. In bytes, or as a text ("1GB"). A
    text waits until there is room for it. None: half of this machine's memory, and 256 MB of it for
    the prefix cache.

    speculate: speculative decoding. Guess tokens that repeat what the text had before, and check
    several of them in one step where that is faster. The text does not change. Only native
    operators do this.

    draft: the artifact of a smaller model with the same vocabulary, whose guesses are checked in
    the same way. It is asked where that makes the texts grow faster. Its KV cache counts in
    cache_memory. Only native operators do this.

    Raises ArtifactError if the folder is not an artifact, is damaged or was made by a newer gptx;
    ProviderError if the device cannot be used; UsageError for wrong arguments, for map_weights
    where no packed weights are used, and for a draft model that cannot guess for this model. Warns
    (GptxWarning) if generation_config.json asks for something that gptx does not do, such as
    watermarks.
    """
    for name, value in (("path", path), ("draft", draft)):
        if value is not None and not isinstance(value, str | os.PathLike):
            raise UsageError(f"{name} is {shown(value)}, expected the folder of an artifact")
    for name, value in (
        ("adjust_memory", adjust_memory),
        ("map_weights", map_weights),
        ("speculate", speculate),
    ):
        if not isinstance(value, bool):
            raise UsageError(f"{name} is {shown(value)}, expected True or False")
    if draft is not None and not speculate:
        raise UsageError("a draft model does nothing with speculate=False: give one of the two")
    rows = count("max_rows", max_rows, "1 to 4096", 4096)
    budget = None if cache_memory is None else size_in_bytes("cache_memory", cache_memory)
    check_device(device, threads)
    manifest = read_manifest(DEFAULT_MODEL if path is None else path)
    folder = manifest.path
    with ThreadPoolExecutor(1) as reader:  # ONNX Runtime lets Python run while it opens a graph
        reading = reader.submit(_load_tokenizer, manifest)
        opened = partial(
            open_graph,
            device=device,
            threads=threads,
            adjust_memory=adjust_memory,
            map_weights=map_weights,
        )
        graph = opened(manifest)
        tokenizer = reading.result()
    smaller = None if draft is None else open_draft(draft, graph, tokenizer, opened)
    task, n_class = read_task(folder), manifest.model.n_class
    generation = read_side_file(folder / "generation_config.json")
    if not n_class and (ignored := unsupported_in_words(generation)) is not None:
        warn(f"{folder}: {ignored}")
    return Model(
        graph,
        tokenizer=tokenizer,
        template=load_template(folder, tokenizer.special) if tokenizer else None,
        generation=generation,
        task=task,
        head=head_of(folder, n_class, task) if n_class else None,
        max_rows=rows,
        cache_memory=budget,
        speculate=speculate,
        draft=smaller,
    )


def _load_tokenizer(manifest: Manifest) -> Tokenizer | None:
    """The tokenizer of an artifact; None if gptx.json says that it has none."""
    tokenizer = load_tokenizer(
        manifest.path,
        tokenizer_vocab_size=manifest.tokens.vocab_size,
        vocab_size=manifest.model.vocab_size,
    )
    if tokenizer is None and manifest.tokens.vocab_size is not None:
        raise ArtifactError(
            f"{manifest.path} has no tokenizer.json, and gptx.json says there is one:"
            " copy the artifact again"
        )
    return tokenizer


class Model(LoadedModel):
    """An opened artifact: generates text, chats, classifies, scores and summarizes.

    Open one with gptx.load. `close`, or leaving a `with` block, frees its memory.

    Attributes:

    - path: the artifact's folder.
    - manifest: the contents of gptx.json, for instance manifest.model.vocab_size.
    - n_ctx: the model's context in tokens.
    - provider: ONNX Runtime's execution provider, "CPUExecutionProvider" or
      "CUDAExecutionProvider".
    - graph: the ONNX file that was opened: onnx/step.onnx if native operators run, else
      onnx/model.onnx or the graph of gptx compile.
    - kernels: the native operators' kernels, for instance "avx2"; None if ONNX Runtime's operators
      run.
    - decode: the ONNX file of a second graph, used for batches of one row on ONNX Runtime's
      operators. Only int8-fast artifacts have one; else None.
    - tokenizer, template: the tokenizer and the chat template; None if the artifact has none.
    - generation: the fields of generation_config.json, the defaults of the options.
    - task: what the model was fine-tuned for (gptx_task.json); None if it was not.
    - head: the classification head; None for a language model.

    Threads: any number of threads may call one Model at the same time. A Session, Stream or Chat
    serves one thread at a time: a call from a second thread meanwhile raises UsageError.
    """

    def chat(self, *, system: str | None = None) -> Chat:
        """Begin a conversation. Returns a Chat.

        system: the system message, which tells the model how to answer. None: no system message.

        Raises UsageError if the artifact has no tokenizer or no chat template, or has a
        classification head.
        """
        return Chat(self, system=system)

    def score(
        self, text: Prompt, *, overlap: int | None = None, cancel: threading.Event | None = None
    ) -> Score:
        """Compute how likely the model finds a text: log-probabilities and perplexity.

        text: a text, or a list of token ids. The first token is not scored, because no token stands
        in front of it.

        overlap: for texts that are longer than the context. They are read in windows, and each
        window begins with the last `overlap` tokens of the window before it, which are not scored
        again. So each token of a later window has at least `overlap` tokens in front of it. A
        larger overlap takes longer. 1 to n_ctx; default: half of n_ctx.

        cancel: a threading.Event. Once another thread sets it, GptxError is raised.

        Raises PromptError for fewer than two tokens, UsageError for a wrong overlap or a
        classification model.
        """
        self._need_language("scored")
        return score(self, text, overlap=overlap, cancel=cancel)

    @overload
    def classify(
        self,
        text: str,
        labels: Sequence[str] | None = None,
        *,
        examples: Sequence[Example] = (),
        template: str | None = None,
        calibrate: bool = False,
        normalization: Normalization = "sum",
        cancel: threading.Event | None = None,
    ) -> Classification: ...
    @overload
    def classify(
        self,
        text: list[str] | tuple[str, ...],
        labels: Sequence[str] | None = None,
        *,
        examples: Sequence[Example] = (),
        template: str | None = None,
        calibrate: bool = False,
        normalization: Normalization = "sum",
        cancel: threading.Event | None = None,
    ) -> list[Classification]: ...
    def classify(
        self,
        text: str | Sequence[str],
        labels: Sequence[str] | None = None,
        *,
        examples: Sequence[Example] = (),
        template: str | None = None,
        calibrate: bool = False,
        normalization: Normalization = "sum",
        cancel: threading.Event | None = None,
    ) -> Classification | list[Classification]:
        r"""Choose the label that fits a text best. A list of texts gives a list of Classifications.

        A language model scores each label by log P(" " + label | prompt), its log-probability as
        the answer to a prompt. A model with a classification head computes a value for each of its
        own labels from the text alone; it takes neither examples nor calibrate.
        Classification.problem_type says what the probabilities mean.

        labels: two or more. Default: those that the model was fine-tuned for.

        examples: (text, label) pairs to put in front of the prompt (few-shot). Default: none, so
        the prompt is zero-shot.

        template: the prompt, with {text} in it. Default: the one that the model was fine-tuned
        with, else "Text: {text}\nLabel:".

        normalization: how the log-probabilities of a label's tokens become its score. "sum" gives
        log P(label | prompt), which fine-tuning maximises, but it prefers short labels. "mean"
        divides the sum by the number of tokens; use it for labels of very different lengths.
        (EleutherAI's evaluation harness has a similar choice: acc sums, acc_norm divides by the
        label's characters.)

        calibrate: divide each label's probability by its probability after texts without content
        ("N/A", "[MASK]" and ""). This corrects for labels that the prompt alone makes likely. It
        helps few-shot prompts of models that were not fine-tuned (Zhao et al. 2021,
        https://arxiv.org/abs/2102.09690).

        cancel: a threading.Event. Once another thread sets it, GptxError is raised.

        A text that is too long for the context is cut at its end; Classification.left_out is the
        number of tokens that were cut.

        Raises PromptError for a text that is empty or of a wrong type, or if the prompt leaves no
        room for the text; UsageError for wrong labels, examples or options.
        """
        if not isinstance(text, str) and not is_list(text):
            raise PromptError(f"the text is {shown(text)}, expected a text or a list of texts")
        texts = [text] if isinstance(text, str) else text
        results = classify(
            self,
            texts,
            labels,
            examples=examples,
            template=template,
            calibrate=calibrate,
            normalization=normalization,
            cancel=cancel,
        )
        return results[0] if isinstance(text, str) else results

    @takes_options
    def summarize(
        self,
        text: str,
        *,
        examples: Sequence[Example] = (),
        template: str | None = None,
        **options: Unpack[Keywords],
    ) -> Summary:
        r"""Summarize a text. Returns a Summary: a Completion with `left_out`.

        examples: (text, summary) pairs to put in front of the prompt (few-shot). With examples, the
        summary ends at an empty line, as the examples do.

        template: the prompt, with {text} in it. Default: the one that the model was fine-tuned
        with, else "{text}\n\nSummary:".

        Options are those of `generate`, with two other defaults: decoding is greedy unless the call
        gives a temperature, and ends after 96 new tokens unless the call or generation_config.json
        sets a limit.

        A text that is too long for the context is cut at its end; Summary.left_out is the number of
        tokens that were cut.

        Raises PromptError for an empty text, or if the prompt leaves no room for the text;
        UsageError for wrong examples or options, or a classification model.
        """
        self._need_language("summarized")
        return summarize(self, text, examples=examples, template=template, options=options)
