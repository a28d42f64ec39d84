"""llama.cpp through llama-cpp-python: `llamacpp:FILE.gguf`. Its build's features are reported with it."""

from collections.abc import Iterator

from measure import Engine, Generate, Job, main, timed


def start() -> None:
    import llama_cpp  # noqa: F401


def load(job: Job) -> Generate:
    import llama_cpp
    import numpy as np

    model = llama_cpp.Llama(
        str(job.path), n_ctx=job.context, n_threads=job.threads, n_threads_batch=job.threads, verbose=False
    )
    n_vocab = model.n_vocab()

    def tokens(prompt: list[int], n: int) -> Iterator[int]:
        model.reset()
        new = prompt
        for _ in range(n + 1):
            model.eval(new)
            logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(model.ctx, -1), (n_vocab,))
            new = [int(logits.argmax())]
            yield new[0]

    return lambda prompt, n: timed(tokens(prompt, n))


def notes() -> str:
    import llama_cpp

    return llama_cpp.llama_print_system_info().decode().strip()


if __name__ == "__main__":
    main(Engine(("llama-cpp-python",), start, load, notes=notes))
