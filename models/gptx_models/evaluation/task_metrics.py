"""The metrics of a fine-tuning task: accuracy and macro-F1 of labels, or ROUGE of summaries.

The model is asked as the runtime asks it: labels are compared by log-probability or by the head,
and summaries are generated greedily.
"""

from __future__ import annotations

from gptx.artifact.class_head import strip_padding
from gptx.artifact.task import prompt
from gptx.progress import stage
from gptx_models.data.finetune_dataset import FinetuneDataset
from gptx_models.data.tokenize_examples import answer_text, prompt_ids
from gptx_models.evaluation.classify import class_of, label_scores
from gptx_models.evaluation.metrics import accuracy, macro_f1, rouge
from gptx_models.evaluation.torch_generate import greedy
from gptx_models.gpt.model import GPT

SUMMARY_TOKENS = 96  # the longest summary; at most a quarter of the context


def task_metrics(gpt: GPT, dataset: FinetuneDataset, *, trained: bool) -> dict[str, float]:
    """The metrics of `gpt` on the evaluation examples; {} for tasks without metrics of their own.

    trained: True after the fine-tuning. Only a fine-tuned model ends its answers with the end
    token, so only then is the token part of a label.
    """
    if dataset.task.kind == "classify":
        return _classification(gpt, dataset, trained)
    if dataset.task.kind == "summarize":
        return _summaries(gpt, dataset)
    return {}


def _classification(gpt: GPT, dataset: FinetuneDataset, trained: bool) -> dict[str, float]:
    task, setup = dataset.task, dataset.setup
    labels = _label_ids(dataset, trained)
    room = dataset.n_ctx - max(map(len, labels))
    predicted, expected = [], []
    examples = dataset.eval_examples
    with stage(f"Classifying {len(examples)} texts", total=len(examples)) as advance:
        for example in examples:
            advance(1)
            asked = prompt_ids(example.text, task, setup.tokenizer, room=room)
            if asked is None:
                continue
            if task.head:
                at = class_of(gpt, strip_padding(asked.ids, setup.pad))
            else:
                at = int(label_scores(gpt, asked.ids, labels).argmax())
            predicted.append(task.labels[at])
            expected.append(example.answers[0])
    return {"accuracy": accuracy(predicted, expected), "macro_f1": macro_f1(predicted, expected)}


def _label_ids(dataset: FinetuneDataset, trained: bool) -> list[list[int]]:
    """The ids of each label as an answer.

    After training they end with the end token, which tells "card" from "card lost".
    """
    task, setup = dataset.task, dataset.setup
    asked = prompt(task.template, "a") if task.template else "a"
    end = setup.ends[:1] if trained else []
    return [
        [*setup.tokenizer.continuation(asked, answer_text(label, task)), *end]
        for label in task.labels
    ]


def _summaries(gpt: GPT, dataset: FinetuneDataset) -> dict[str, float]:
    task, setup = dataset.task, dataset.setup
    length = min(SUMMARY_TOKENS, dataset.n_ctx // 4)
    prompts, references = [], []
    for example in dataset.eval_examples:
        asked = prompt_ids(example.text, task, setup.tokenizer, room=dataset.n_ctx - length)
        if asked is not None:
            prompts.append(asked.ids)
            references.append(example.answers)
    summaries = []
    with stage(f"Summarizing {len(prompts)} texts", total=len(prompts)) as advance:
        for ids in greedy(gpt, prompts, n_tokens=length, ends=setup.ends):
            summaries.append(setup.tokenizer.decode(ids).strip())
            advance(1)
    return rouge(summaries, references)
