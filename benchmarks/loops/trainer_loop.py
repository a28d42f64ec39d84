"""transformers.Trainer on GPT2LMHeadModel: fused attention and AdamW, no evaluation or saving."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterator

from lesson import BETAS, CLIP, WEIGHT_DECAY, Batch, Lesson, held_out_loss, main
from torch import Tensor
from torch.utils.data import IterableDataset
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    Trainer,
    TrainingArguments,
    default_data_collator,
)


class Rows(IterableDataset):
    """The rows of all batches in order; Trainer makes batches of them again."""

    def __init__(self, batch: Callable[[int], Batch]) -> None:
        self.batch = batch

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for step in itertools.count():
            for inputs, targets in zip(*self.batch(step)):
                yield {
                    "input_ids": inputs,
                    "labels": targets,
                    "shift_labels": targets,
                }  # the targets are shifted already


def train(lesson: Lesson, batch: Callable[[int], Batch]) -> float:
    config = GPT2Config(
        **lesson.shape,
        n_positions=lesson.shape["n_ctx"],
        # GPT-2's own name for this function, "gelu_new", has a slower implementation
        activation_function="gelu_pytorch_tanh",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        use_cache=False,
        attn_implementation="sdpa",
    )
    model = GPT2LMHeadModel(config)
    model.load_state_dict(lesson.weights(), strict=False)  # the file has no tied head
    model.tie_weights()
    with tempfile.TemporaryDirectory(prefix="gptx-trainer-") as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=lesson.all_steps,
            per_device_train_batch_size=lesson.batch_size,
            learning_rate=lesson.learning_rate,
            lr_scheduler_type="constant",
            weight_decay=WEIGHT_DECAY,
            adam_beta1=BETAS[0],
            adam_beta2=BETAS[1],
            max_grad_norm=CLIP,
            optim="adamw_torch_fused",
            bf16=lesson.precision == "bf16",
            use_cpu=lesson.device == "cpu",
            torch_compile=lesson.compile,
            eval_strategy="no",
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
        )
        Trainer(
            model, arguments, train_dataset=Rows(batch), data_collator=default_data_collator
        ).train()
    model.eval()
    return held_out_loss(lambda ids: model(input_ids=ids).logits, lesson)


if __name__ == "__main__":
    main(train)
