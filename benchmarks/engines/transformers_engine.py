"""transformers on PyTorch: `transformers:CHECKPOINT`, in fp32, or `transformers:CHECKPOINT:bfloat16`.

A loop of our own around the model and its DynamicCache, which is faster than generate() with its checks at every token.
"""

from collections.abc import Iterator

from measure import Engine, Generate, Job, main, timed


def start() -> None:
    import torch  # noqa: F401
    from transformers import AutoModelForCausalLM, DynamicCache  # noqa: F401


def load(job: Job) -> Generate:
    import torch
    from transformers import AutoModelForCausalLM, DynamicCache

    torch.set_num_threads(job.threads)
    model = AutoModelForCausalLM.from_pretrained(job.path, dtype=getattr(torch, job.variant or "float32"))
    model.eval()

    def tokens(prompt: list[int], n: int) -> Iterator[int]:
        cache, new = DynamicCache(config=model.config), torch.tensor([prompt])
        for _ in range(n + 1):
            logits = model(new, past_key_values=cache, use_cache=True, logits_to_keep=1).logits  # (1, 1, V)
            new = logits[0].argmax(-1, keepdim=True)  # (1, 1)
            yield int(new)

    def generate(prompt: list[int], n: int):
        with torch.inference_mode():
            return timed(tokens(prompt, n))

    return generate


if __name__ == "__main__":
    main(Engine(("transformers", "torch"), start, load))
