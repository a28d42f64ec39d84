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
    """Open the artifact in the folder `path`, or the model that ships with gptx.

    device: "cpu"; "cuda", which raises ProviderError if the model cannot run there; or "auto",
    which takes CUDA if it works and else the CPU. threads: CPU threads; None takes one per core.

    adjust_memory: on Linux, gptx adjusts the memory of its own process when it runs on a CPU. After
    loading it gives back the pages that only loading needed. After 128 steps it moves the weights
    into large pages (2 MB), which makes decoding 4 to 10% faster. Neither changes a result. Pass
    False in an app that manages its memory itself.

    Warns (GptxWarning) of fields in generation_config.json that gptx does not obey. Raises
    ArtifactError if the artifact is damaged or of a newer gptx, ProviderError if the device cannot
    be used, UsageError for a wrong argument.
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
    """An opened artifact: `gptx.load` returns one. Each task is a method.

    `tokenizer` and `template` (the chat template) are None if the artifact has none.

    Threads: any number of threads may call a model at the same time. A session, stream or chat
    serves one thread at a time; a second thread that calls it meanwhile gets UsageError.
    """

    def chat(self, *, system: str | None = None) -> Chat:
        """Begin a conversation. system: the text of the system message; None: no such message.

        Raises UsageError if the artifact has no tokenizer or no chat template.
        """
        return Chat(self, system=system)

    def score(self, text: Prompt, *, overlap: int | None = None) -> Score:
        """How likely the model finds a text: each token's log-probability, their sum, the
        perplexity.

        text: a text, or its token ids. The first token is not scored, as nothing stands before it.

        A text that is longer than the context is read in windows that overlap. overlap: how many
        tokens of the window before are read again at the beginning of each window, so that every
        scored token has at least so many tokens before it. They are not scored twice. Default: half
        of the context. A larger overlap judges tokens by more of the text and takes longer.

        Raises PromptError for a text of a single token, UsageError for a wrong overlap.
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
        """Find the label that fits a text best. A list of texts gives a list of Classifications.

        A language model gets a prompt with the text, and each label is scored by its probability as
        the answer: log P(" " + label | prompt). The beginning that the prompts share is computed
        once. A model with a classification head gets the text alone; it has its own labels, and
        `Classification.problem_type` says what its probabilities mean.

        labels: the labels to choose from. Default: those that the model was fine-tuned for.
        template: the prompt, with {text} in it. Default: the template of the fine-tuning, else
        "Text: {text}\nLabel:".
        examples: (text, label) pairs to put before the text (few-shot). None: zero-shot.
        normalization: "sum" adds a label's token log-probabilities. This is the label's
        probability, which training maximises, but it prefers short labels. "mean" divides by the
        label's length in tokens; take it for labels of very different lengths. (They are acc and
        acc_norm of EleutherAI's evaluation harness.)
        calibrate: divide by the probabilities that the labels have after texts without content
        ("N/A", "[MASK]" and ""). This takes away what the prompt alone prefers, and helps few-shot
        prompts of models that were not fine-tuned (Zhao et al. 2021,
        https://arxiv.org/abs/2102.09690).

        A text that is too long for the context is cut at its end; `Classification.left_out` is the
        number of tokens that were cut. Raises PromptError for a text that is empty or of a wrong
        type, UsageError for labels, examples or a template that make no sense.
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
        """Summarize a text. Returns a Summary: a Completion with `left_out`.

        A text that is too long for the context is cut at its end; `left_out` is the number of
        tokens that were cut.

        template: the prompt, with {text} in it. Default: the template of the fine-tuning, else
        "{text}\n\nSummary:".
        examples: (text, summary) pairs to put before the text (few-shot). With examples, the
        summary ends at an empty line, as theirs do.

        The options are those of `generate`, with two other defaults: decoding is greedy unless the
        call gives a temperature, and the summary ends after 96 new tokens if neither the call nor
        generation_config.json says how many. Raises PromptError and UsageError as `generate` does.
        """
        self._need_language("summarized")
        return summarize(self, text, examples=examples, template=template, options=options)
