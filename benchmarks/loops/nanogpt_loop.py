"""nanoGPT's model and training loop (github.com/karpathy/nanoGPT), rewritten in plain PyTorch.

- Model: q, k and v in one projection, PyTorch's fused causal attention, a tied head over all
  positions at once, mean cross-entropy.
- Loop: sets the learning rate in each step, makes the next batch between forward and backward,
  clips gradients, uses AdamW with weight decay for matrices only, reads the loss every tenth step.
- Differences: autocast and fused AdamW also on a CPU, where nanoGPT has them on CUDA only; GELU by
  tanh, as in GPT-2, so that all engines train the same model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from lesson import BETAS, CLIP, LOG_EVERY, WEIGHT_DECAY, Batch, Lesson, held_out_loss, main
from torch import Tensor, nn


class SelfAttention(nn.Module):
    def __init__(self, n_embd: int, n_head: int) -> None:
        super().__init__()
        self.n_head = n_head
        self.c_attn = nn.Linear(n_embd, 3 * n_embd)
        self.c_proj = nn.Linear(n_embd, n_embd)

    def forward(self, x: Tensor) -> Tensor:
        rows, length, width = x.shape
        q, k, v = (
            part.view(rows, length, self.n_head, width // self.n_head).transpose(
                1, 2
            )  # (B, H, S, D)
            for part in self.c_attn(x).split(width, dim=2)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(y.transpose(1, 2).contiguous().view(rows, length, width))


class MLP(nn.Module):
    def __init__(self, n_embd: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(n_embd, 4 * n_embd)
        self.c_proj = nn.Linear(4 * n_embd, n_embd)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))


class Block(nn.Module):
    def __init__(self, n_embd: int, n_head: int) -> None:
        super().__init__()
        self.ln_1, self.attn = nn.LayerNorm(n_embd), SelfAttention(n_embd, n_head)
        self.ln_2, self.mlp = nn.LayerNorm(n_embd), MLP(n_embd)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class NanoGPT(nn.Module):
    transformer: Any  # a ModuleDict; torch has no types for its parts

    def __init__(
        self, *, vocab_size: int, n_ctx: int, n_layer: int, n_head: int, n_embd: int
    ) -> None:
        super().__init__()
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(vocab_size, n_embd),
                "wpe": nn.Embedding(n_ctx, n_embd),
                "h": nn.ModuleList(Block(n_embd, n_head) for _ in range(n_layer)),
                "ln_f": nn.LayerNorm(n_embd),
            }
        )
        self.lm_head = nn.Linear(n_embd, vocab_size, bias=False)
        self.lm_head.weight = self.transformer.wte.weight

    def forward(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        positions = torch.arange(inputs.shape[1], device=inputs.device)
        x = self.transformer.wte(inputs) + self.transformer.wpe(positions)
        for block in self.transformer.h:
            x = block(x)
        logits = self.lm_head(self.transformer.ln_f(x))
        return logits, F.cross_entropy(
            logits.view(-1, logits.shape[-1]), targets.reshape(-1), ignore_index=-1
        )

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Load GPT-2's tensors, named as in transformers; Conv1D weights are transposed."""
        turned = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
        state = {name: t.t() if name.endswith(turned) else t for name, t in tensors.items()}
        self.load_state_dict({**state, "lm_head.weight": state["transformer.wte.weight"]})


def train(lesson: Lesson, batch: Callable[[int], Batch]) -> float:
    torch.manual_seed(1337)
    raw = NanoGPT(**lesson.shape)
    raw.load(lesson.weights())
    raw.to(lesson.device)
    groups = [
        {"params": [p for p in raw.parameters() if p.dim() >= 2], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in raw.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=lesson.learning_rate, betas=BETAS, fused=True)
    model = torch.compile(raw) if lesson.compile else raw

    def moved(step: int) -> Batch:
        inputs, targets = batch(step)
        if lesson.device == "cuda":
            return tuple(
                ids.pin_memory().to("cuda", non_blocking=True) for ids in (inputs, targets)
            )  # type: ignore
        return inputs, targets

    inputs, targets = moved(0)
    for step in range(lesson.all_steps):
        for group in optimizer.param_groups:
            group["lr"] = lesson.learning_rate
        with lesson.autocast():
            _, loss = model(inputs, targets)
        inputs, targets = moved(step + 1)
        loss.backward()
        nn.utils.clip_grad_norm_(raw.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % LOG_EVERY == 0:
            loss.item()
    raw.eval()
    return held_out_loss(lambda ids: raw(ids, ids)[0], lesson)


if __name__ == "__main__":
    main(train)
