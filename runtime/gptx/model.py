"""gptx.load and Model: an artifact's path in, an opened model out, with each task as a method."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Unpack, overload

from gptx.arguments import is_list
from gptx.artifact.class_head import head_of
from gptx.artifact.json_files import read_side_file
from gptx.artifact.manifest import read_manifest
from gptx.artifact.task import Example, read_task
from gptx.errors import ArtifactError, PromptError, UsageError, shown, warn
from gptx.generation.generation_config import unsupported_in_words
from gptx.generation.loaded_model import LoadedModel, Prompt
from gptx.generation.options import Given, takes_options
from gptx.ort.device import check_device
from gptx.ort.graph import open_graph
from gptx.tasks.chat import Chat
from gptx.tasks.classify import Classification, Normalization, classify
from gptx.tasks.score import Score, score
from gptx.tasks.summarize import Summary, summarize
from gptx.text.chat_template import load_template
from gptx.text.tokenizer import load_tokenizer

DEFAULT_MODEL = Path(__file__).parent / "default_model"


def load(
    path: str | Path | None = None,
    *,
    device: str = "cpu",
    threads: int | None = None,
    adjust_memory: bool = True,
) -> Model:
    """Open the artifact at `path`, or the model that ships with gptx.

    device: "cpu", "cuda" (runs there or raises ProviderError) or "auto" (CUDA where it works). threads: None is one for
    each core.

    adjust_memory: on Linux, gptx adjusts the memory of its process on a CPU. After loading it gives pages back that were
    needed only for loading. After 128 steps it moves the weights into large pages (2 MB), which makes decoding 4 to 10%
    faster. Neither changes a result. Pass False in an app that manages its memory itself.

    Warns (GptxWarning) of fields in generation_config.json that gptx does not obey. Raises ArtifactError,
    ProviderError, UsageError.
    """
    if path is not None and not isinstance(path, str | os.PathLike):
        raise UsageError(f"path is {shown(path)}, expected the folder of an artifact")
    if not isinstance(adjust_memory, bool):
        raise UsageError(f"adjust_memory is {shown(adjust_memory)}, expected True or False")
    check_device(device, threads)
    manifest = read_manifest(DEFAULT_MODEL if path is None else path)
    folder = manifest.path
    tokenizer = load_tokenizer(
        folder,
        tokenizer_vocab_size=manifest.tokens.vocab_size,
        vocab_size=manifest.model.vocab_size,
    )
    if tokenizer is None and manifest.tokens.vocab_size is not None:
        raise ArtifactError(
            f"{folder} has no tokenizer.json, and gptx.json says there is one: copy the artifact again"
        )
    task, n_class = read_task(folder), manifest.model.n_class
    generation = read_side_file(folder / "generation_config.json")
    if not n_class and (unheeded := unsupported_in_words(generation)) is not None:
        warn(f"{folder}: {unheeded}")
    return Model(
        open_graph(manifest, device=device, threads=threads, adjust_memory=adjust_memory),
        tokenizer=tokenizer,
        template=load_template(folder, tokenizer.special) if tokenizer else None,
        generation=generation,
        task=task,
        head=head_of(folder, n_class, task) if n_class else None,
    )


class Model(LoadedModel):
    """An opened artifact. `tokenizer` and `template` are None where the artifact has none.

    Any number of threads may call a model at the same time. Sessions, streams and chats hold what changes: each of them
    serves one thread at a time, and says so where two meet.
    """

    def chat(self, *, system: str | None = None) -> Chat:
        """Begin a conversation. system: the system message. Raises UsageError if the artifact has no chat template."""
        return Chat(self, system=system)

    def score(self, text: Prompt, *, overlap: int | None = None) -> Score:
        """How likely the model finds a text: the log-probability of each token, their sum, and the perplexity.

        A text that is longer than the context is read in windows that overlap. overlap: how many tokens of the window
        before are read again at the beginning of each window. They are not scored twice; they are there so that each
        scored token has at least so many tokens before it. Default: half of the context. A larger overlap judges tokens
        by more of the text, and takes longer.

        Raises PromptError for a text of a single token, as nothing stands before it; UsageError for a wrong overlap.
        """
        self._need_language("scored")
        return score(self, text, overlap=overlap)

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
    ) -> Classification | list[Classification]:
        """Which label fits a text; a list of texts gives a list, and what their prompts have in common is read once.

        A language model is asked with `template` (by default the one it was fine-tuned with, else "Text: {text}\nLabel:")
        and answers by log P(" " + label | prompt). Zero-shot as it is; `examples` [(text, label), ...] make it one- or
        few-shot. `labels` default to those it was fine-tuned for. A model with a classification head knows its labels
        and reads the text alone; its Classification.problem_type says what the probabilities are.

        normalization: "sum" of a label's token log-probabilities is log P(label | prompt), what training on prompt and
        label maximises, and the only one whose values are probabilities of the labels; "mean", per token, is for labels
        of very different lengths, of which a sum prefers the short ones (acc and acc_norm in EleutherAI's evaluation
        harness are this choice). calibrate: divide by the probabilities that the labels have after texts that say nothing
        ("N/A", "[MASK]" and none), which takes away what the prompt alone prefers (Zhao et al. 2021,
        https://arxiv.org/abs/2102.09690); it helps few-shot prompts of models that were not fine-tuned.

        A text too long for the context loses its end: `left_out` tells how many tokens. Raises PromptError, UsageError.
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
        )
        return results[0] if isinstance(text, str) else results

    @takes_options
    def summarize(
        self,
        text: str,
        *,
        examples: Sequence[Example] = (),
        template: str | None = None,
        **options: Unpack[Given],
    ) -> Summary:
        """A summary of a text: a Completion with `left_out`, the tokens of the text's end that the context had no room for.

        The prompt is `template` (by default the one it was fine-tuned with, else "{text}\n\nSummary:") with the text, after
        as many `examples` [(text, summary), ...] as are given; then it ends at an empty line, as they do. Options as in
        generate, but greedy where temperature is not given, and 96 new tokens where neither the call nor the artifact's
        generation_config.json says how many. Raises PromptError, UsageError.
        """
        self._need_language("summarized")
        return summarize(self, text, examples=examples, template=template, options=options)
