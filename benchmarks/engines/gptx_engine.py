"""gptx, by its step-level API: `gptx:ARTIFACT`."""

from collections.abc import Iterator

from measure import Engine, Generate, Job, main, timed


def start() -> None:
    import gptx  # noqa: F401  (numpy and ONNX Runtime come with load, and are counted there)


def load(job: Job) -> Generate:
    import gptx

    model = gptx.load(job.path, threads=job.threads)

    def tokens(prompt: list[int], n: int) -> Iterator[int]:
        with model.session() as session:
            token = int(session.feed([prompt])[0].argmax())
            yield token
            for _ in range(n):
                token = int(session.feed([[token]])[0].argmax())
                yield token

    return lambda prompt, n: timed(tokens(prompt, n))


if __name__ == "__main__":
    main(Engine(("gptx", "onnxruntime"), start, load))
