"""gptx run: standard output, sources of the prompt, batches, JSON, leaving early, bad input."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

import gptx as api
from builders.gptx_command import Outcome, finished, gptx, process
from builders.tiny_artifact import write_artifact
from gptx.cli import prompt as prompt_module

TEMPLATE = "{% for m in messages %}[{{ m.role }}]{{ m.content }}\n{% endfor %}[assistant]"
N_CTX = 20_000


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_artifact(tmp_path_factory.mktemp("run") / "plain", n_ctx=N_CTX)


@pytest.fixture(scope="module")
def chatty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_artifact(tmp_path_factory.mktemp("run") / "chatty", template=TEMPLATE, n_ctx=512)


@pytest.fixture(scope="module")
def ids_only(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_artifact(tmp_path_factory.mktemp("run") / "ids", tokenizer=False)


def expected(artifact: Path, prompt: str | list[int], n: int = 12) -> str:
    text = api.load(artifact).generate(prompt, max_new_tokens=n).text
    assert text is not None
    return text.rstrip("\n")


def run(
    artifact: Path, *args: str, stdin: bytes | None = b"", terminal: bool = False, n: int = 12
) -> Outcome:
    return gptx("run", "-m", artifact, "-n", str(n), *args, stdin=stdin, terminal=terminal)


# Standard output and standard error


def test_standard_output_is_the_text_and_one_newline(artifact: Path) -> None:
    outcome = run(artifact, "the cat")
    assert outcome.status == 0
    assert outcome.text == expected(artifact, "the cat") + "\n"
    assert (
        "12 tokens at" in outcome.err
        and "the first after" in outcome.err
        and "seed" not in outcome.err
    )


def test_echo_and_quiet(artifact: Path) -> None:
    outcome = run(artifact, "the cat", "--echo", "--quiet")
    assert outcome.text == "the cat" + expected(artifact, "the cat") + "\n"
    assert outcome.err == ""


def test_the_seed_that_was_drawn_draws_the_text_again(artifact: Path) -> None:
    first = run(artifact, "the cat", "--temperature", "1")
    seed = first.err.split("seed ")[1].split(",")[0]
    assert run(artifact, "the cat", "--temperature", "1", "--seed", seed).out == first.out


def test_a_terminal_gets_no_control_characters(artifact: Path) -> None:
    raw = expected(artifact, "the cat", 200)
    assert any(ord(c) < 32 and c not in "\n\t" for c in raw)  # random weights write them
    shown = run(artifact, "the cat", terminal=True, n=200).text
    assert not any(ord(c) < 32 and c not in "\n\t" for c in shown)


def test_newlines_at_the_end_become_one(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    from gptx.cli.output import Printer, set_up_streams

    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", out)
    set_up_streams()
    with Printer() as printer:
        for piece in ("\n", "a\n", "\n", "\n é", "\n\n", "\n"):
            printer.write(piece)
    assert out.buffer.getvalue() == "\na\n\n\n é\n".encode()


def test_escapes_in_stop_texts() -> None:
    from gptx.cli.options import unescape

    assert unescape(r"a\n\tb\\n\x") == "a\n\tb\\n\\x"


def test_stop(artifact: Path) -> None:
    text = expected(artifact, "the cat", 40)
    stop = text[10:13]
    outcome = run(
        artifact, "the cat", "--stop", stop.replace("\\", "\\\\").replace("\n", r"\n"), n=40
    )
    assert outcome.text == text[: text.index(stop)].rstrip("\n") + "\n"


def test_options_against_repetition(artifact: Path) -> None:
    ids = ("--tokens", "5,6,5,6,5", "--json", "--quiet")
    given = {"no_repeat_ngram_size": 1, "dry_multiplier": 2.0, "dry_sequence_breakers": ["\n", "x"]}
    outcome = run(
        artifact,
        *ids,
        *("--no-repeat-ngram-size", "1", "--dry-multiplier", "2"),
        *("--dry-sequence-breakers", r"\n", "--dry-sequence-breakers", "x"),
    )
    model = api.load(artifact)
    expected = model.generate([5, 6, 5, 6, 5], max_new_tokens=12, **given).token_ids
    assert json.loads(outcome.text)["token_ids"] == expected
    assert len(set(expected)) == len(expected) and not {5, 6} & set(expected)


def test_json(artifact: Path) -> None:
    outcome = run(artifact, "the cat", "--json", "--quiet", "--temperature", "1", "--seed", "7")
    facts = json.loads(outcome.text)
    assert outcome.text.count("\n") == 1
    again = api.load(artifact).generate("the cat", max_new_tokens=12, temperature=1.0, seed=7)
    assert (facts["text"], facts["token_ids"], facts["seed"]) == (again.text, again.token_ids, 7)
    assert (facts["finish_reason"], facts["prompt_tokens"], facts["new_tokens"]) == (
        "length",
        again.prompt_tokens,
        12,
    )
    assert (facts["artifact"], facts["provider"]) == (str(artifact), "CPUExecutionProvider")
    assert (
        min(
            facts["time_to_first_token"],
            facts["tokens_per_second"],
            facts["load_seconds"],
            facts["seconds"],
        )
        > 0
    )
    assert "prompt" not in facts
    assert json.loads(run(artifact, "the cat", "--json", "--echo").text)["prompt"] == "the cat"


def test_256_tokens_where_nobody_says_how_many(artifact: Path, tmp_path: Path) -> None:
    ids = json.loads(gptx("run", "-m", artifact, "the", "--min-new-tokens", "256", "--json").text)[
        "token_ids"
    ]
    assert len(ids) == 256
    says = write_artifact(
        tmp_path / "says", n_ctx=512, generation={"max_new_tokens": 9, "min_new_tokens": 9}
    )
    assert len(json.loads(gptx("run", "-m", says, "the", "--json").text)["token_ids"]) == 9


def test_a_text_ends_in_time(tmp_path: Path) -> None:
    endless = write_artifact(tmp_path / "endless", n_ctx=N_CTX, eos=[])
    outcome = run(endless, "the cat", "--max-time", "0.2", "--json", n=N_CTX - 50)
    assert outcome.status == 0 and json.loads(outcome.text)["finish_reason"] == "time"


def test_a_text_may_outgrow_the_context(tmp_path: Path) -> None:
    small = write_artifact(tmp_path / "small", n_ctx=32, eos=[])
    assert "context full" in run(small, "the cat", n=60).err
    assert "context full" in run(small, "the cat", "--overflow", "stop", n=60).err
    slid = json.loads(run(small, "the cat", "--overflow", "slide", "--json", n=60).text)
    expected = api.load(small).generate("the cat", max_new_tokens=60, overflow="slide")
    assert slid["token_ids"] == expected.token_ids and slid["finish_reason"] == "length"


# Where the prompt comes from


@pytest.mark.parametrize(
    "args, stdin, prompt",
    [
        ((), b"the cat\r\n\n", "the cat"),
        (("-",), "\ufeffthe cat".encode(), "the cat"),
        (("the cat",), b"", "the cat"),
        (("the cat",), b"\n", "the cat"),
        (("the cat",), None, "the cat"),
        (("the cat",), b"a\nb\n", "the cat\n\na\nb"),
    ],
)
def test_prompt_and_standard_input(
    artifact: Path, args: tuple[str, ...], stdin: bytes | None, prompt: str
) -> None:
    outcome = run(artifact, *args, "--echo", stdin=stdin)
    assert outcome.text == prompt + expected(artifact, prompt) + "\n"


def test_a_terminal_is_not_read_when_there_is_a_prompt(artifact: Path) -> None:
    assert run(artifact, "the cat", "--echo", stdin=b"typed", terminal=True).text.startswith(
        "the cat"
    )
    outcome = run(artifact, terminal=True)
    assert outcome.status == 2 and "the prompt is missing" in outcome.err


@pytest.mark.parametrize("stdin", [b"", b"\n", None])
def test_nothing_at_all_is_an_error(artifact: Path, stdin: bytes | None) -> None:
    for args in ((), ("-",)):
        outcome = run(artifact, *args, stdin=stdin)
        assert (outcome.status, outcome.out) == (1, b"")
        assert "the prompt is empty" in outcome.err


def test_standard_input_that_is_no_text(artifact: Path) -> None:
    outcome = run(artifact, "the cat", stdin=b"abc\xe2\x82")
    assert (outcome.status, outcome.out) == (1, b"")
    assert "standard input is not UTF-8 text: byte 0xe2 at offset 3" in outcome.err


def test_a_prompt_that_is_no_text(artifact: Path) -> None:
    outcome = run(artifact, os.fsdecode(b"ab\xff"))
    assert outcome.status == 1 and "byte 0xff at offset 2" in outcome.err


def test_dev_null_and_a_pipe(artifact: Path) -> None:
    args = ("run", "-m", artifact, "the cat", "--echo", "--quiet", "-n", "12")
    alone = finished(process(*args, stdin=subprocess.DEVNULL))
    assert (alone.status, alone.text, alone.err) == (
        0,
        "the cat" + expected(artifact, "the cat") + "\n",
        "",
    )
    piped = finished(process(*args, stdin=subprocess.PIPE), given=b"x\n")
    assert piped.text == "the cat\n\nx" + expected(artifact, "the cat\n\nx") + "\n"


def test_an_idle_socket_is_not_waited_for(artifact: Path) -> None:
    """Node's child_process connects a socket to a command and leaves it open."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        outcome = finished(
            process("run", "-m", artifact, "the cat", "--echo", "-n", "12", stdin=theirs.fileno())
        )
    assert outcome.text == "the cat" + expected(artifact, "the cat") + "\n"


def test_a_silent_pipe_is_waited_for_with_a_notice(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(prompt_module, "NOTICE_AFTER", 0.01)
    reader, writer = os.pipe()
    with os.fdopen(reader) as stdin, os.fdopen(writer, "wb") as held:
        monkeypatch.setattr("sys.stdin", stdin)
        assert prompt_module._something_piped()
        assert "waiting for the end of standard input" in capsys.readouterr().err
        held.write(b"late")
        held.close()
        assert prompt_module.read_prompt("the cat") == "the cat\n\nlate"


# Chat templates


def test_chat_uses_the_template(chatty: Path) -> None:
    outcome = run(chatty, "hello", "--chat", "--system", "be brief")
    assert outcome.text == expected(chatty, "[system]be brief\n[user]hello\n[assistant]") + "\n"
    assert "hint" not in outcome.err


def test_a_chat_model_without_chat_gets_a_hint(chatty: Path) -> None:
    outcome = run(chatty, "hello")
    assert outcome.status == 0 and "hint: this is a chat model, --chat" in outcome.err
    assert "hint" not in run(chatty, "hello", "--quiet").err


def test_chat_without_a_template(artifact: Path) -> None:
    outcome = run(artifact, "hello", "--chat")
    assert (outcome.status, outcome.out) == (1, b"") and "no chat template" in outcome.err


# Token ids


def test_tokens_without_a_tokenizer(ids_only: Path) -> None:
    ids = api.load(ids_only).generate([1, 2, 3], max_new_tokens=5).token_ids
    assert run(ids_only, "--tokens", "1,2, 3", n=5).text == ",".join(map(str, ids)) + "\n"
    assert (
        run(ids_only, "--tokens", "-", "--echo", stdin=b"1 2 3\n", n=5).text
        == f"1,2,3,{','.join(map(str, ids))}\n"
    )
    outcome = run(ids_only, "the cat")
    assert outcome.status == 1 and "--tokens" in outcome.err


def test_tokens_with_a_tokenizer_give_text(artifact: Path) -> None:
    ids = api.load(artifact).encode("the cat")
    tokens = ",".join(map(str, ids))
    assert (
        run(artifact, "--tokens", tokens, "--echo").text
        == "the cat" + expected(artifact, ids) + "\n"
    )


# Batches


def test_batch_is_a_result_a_line_in_order(artifact: Path, tmp_path: Path) -> None:
    lines = ["the cat", "a dog sat on the mat", "on\u2028the", "the", "log"]
    file = tmp_path / "prompts.txt"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    outcome = run(artifact, "--batch", str(file), "--batch-size", "2", "--echo")
    results = [json.loads(line) for line in outcome.text.splitlines()]
    assert outcome.status == 0 and outcome.err == ""
    assert [facts["prompt"] for facts in results] == lines
    model = api.load(artifact)
    assert [facts["text"] for facts in results] == [
        model.generate(line, max_new_tokens=12).text for line in lines
    ]
    assert {"token_ids", "finish_reason", "tokens_per_second", "artifact", "provider"} <= set(
        results[0]
    )


def test_a_bad_line_does_not_stop_the_others(artifact: Path) -> None:
    lines = ["the", "", "x " * N_CTX, "cat"]
    options = ("--temperature", "1", "--seed", "5")
    outcome = run(artifact, "--batch", "-", *options, stdin="\n".join(lines).encode())
    results = [json.loads(line) for line in outcome.text.splitlines()]
    assert outcome.status == 1
    assert "line is empty" in results[1]["error"] and "context holds" in results[2]["error"]
    for line in (0, 3):  # each line's seed is its own, whatever happens to the others
        alone = run(artifact, lines[line], "--json", "--temperature", "1", "--seed", str(5 + line))
        assert results[line]["token_ids"] == json.loads(alone.text)["token_ids"]


def test_batch_of_chats_and_of_ids(chatty: Path, ids_only: Path) -> None:
    outcome = run(chatty, "--batch", "-", "--chat", stdin=b"hello\n")
    assert json.loads(outcome.text)["text"].rstrip("\n") == expected(
        chatty, "[user]hello\n[assistant]"
    )
    ids = json.loads(run(ids_only, "--batch", "-", stdin=b"1,2,3\nx\n", n=4).text.splitlines()[0])[
        "token_ids"
    ]
    assert ids == api.load(ids_only).generate([1, 2, 3], max_new_tokens=4).token_ids


# Leaving early


def started_long(artifact: Path, *args: str) -> subprocess.Popen[bytes]:
    """A run that takes some seconds and has printed something."""
    return process(
        "run",
        "-m",
        artifact,
        "the cat",
        "-n",
        str(N_CTX - 10),
        "--min-new-tokens",
        str(N_CTX - 10),
        *args,
    )


def test_ctrl_c_keeps_what_was_printed(artifact: Path) -> None:
    started = started_long(artifact)
    assert started.stdout is not None
    first = started.stdout.read(40)
    started.send_signal(signal.SIGINT)
    outcome = finished(started)
    text = first + outcome.out
    assert outcome.status == 130
    assert text.endswith(b"\n") and not text.endswith(b"\n\n")
    assert "interrupted" in outcome.err and "Traceback" not in outcome.err


def test_ctrl_c_with_json(tmp_path: Path) -> None:
    started = started_long(
        write_artifact(tmp_path / "chatty", template=TEMPLATE, n_ctx=N_CTX), "--json"
    )
    assert started.stderr is not None
    assert started.stderr.readline().startswith(b"hint")  # loaded, and about to begin
    time.sleep(0.2)
    started.send_signal(signal.SIGINT)
    outcome = finished(started)
    facts = json.loads(outcome.text)
    assert (
        facts["finish_reason"] == "interrupted"
        and facts["new_tokens"] == len(facts["token_ids"]) > 0
    )
    assert outcome.status == 130 and "Traceback" not in outcome.err


def test_a_closed_pipe_is_silent(artifact: Path) -> None:
    started = started_long(artifact)
    assert started.stdout is not None
    assert len(started.stdout.read(5)) == 5
    started.stdout.close()
    assert started.stderr is not None
    assert started.stderr.read() == b""
    assert started.wait(60) == 0


def test_beams_and_guidance(artifact: Path) -> None:
    """The command has a row for each beam, where Python's default is 8 rows."""
    outcome = run(artifact, "the", "--num-beams", "9", "-n", "3", "--json")
    assert outcome.status == 0 and json.loads(outcome.out)["score"] < 0
    guided = run(artifact, "the", "--guidance-scale", "3", "--negative-prompt", "a cat", "-n", "9")
    assert guided.status == 0 and guided.out


# What cannot be run


@pytest.mark.parametrize(
    "args, status, says",
    [
        (("",), 1, "the prompt is empty"),
        (("the", "--system", "x"), 2, "--system needs --chat"),
        (("the", "--tokens", "1"), 2, "--tokens takes the place of the prompt"),
        (("the", "--batch", "x"), 2, "--batch takes the place of the prompt"),
        (("--batch", "/no/such/file"), 1, "cannot read /no/such/file: No such file or directory"),
        (("--tokens", "1,x"), 1, "'x'"),
        (("--tokens", "99999"), 1, "token id 99999"),
        (("the", "--temperature", "-1"), 1, "temperature is -1"),
        (("the", "--top-p", "2"), 1, "top_p is 2"),
        (("the", "--num-beams", "2", "--temperature", "1"), 1, "draws at random: give one of them"),
        (("the", "--negative-prompt", "a"), 1, "no effect without guidance_scale"),
        (("the", "--max-time", "0"), 1, "max_time is 0.0, expected seconds, over 0"),
        (("the", "--overflow", "roll"), 2, "--overflow"),
        (("the", "--threads", "0"), 2, "--threads"),
        (("x " * N_CTX,), 1, "context holds"),
    ],
)
def test_one_line_each(artifact: Path, args: tuple[str, ...], status: int, says: str) -> None:
    outcome = run(artifact, *args)
    assert (outcome.status, outcome.out) == (status, b"")
    assert outcome.err.startswith("gptx: ") and outcome.err.count("\n") == 1 and says in outcome.err


def test_no_artifact_and_a_checkpoint(tmp_path: Path) -> None:
    assert "does not exist" in run(tmp_path / "none", "the").err
    (tmp_path / "config.json").write_text("{}")
    outcome = run(tmp_path, "the")
    assert outcome.status == 1 and f"gptx export {tmp_path}" in outcome.err


def test_cuda_without_cuda(artifact: Path) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("CUDA is here")
    outcome = run(artifact, "the", "--device", "cuda")
    assert outcome.status == 1 and "cuda" in outcome.err and outcome.err.count("\n") == 1
    assert run(artifact, "the", "--device", "auto").status == 0


def test_fp16_on_a_cpu_says_what_it_does(quantized: dict[str, Path]):
    outcome = gptx("run", "-m", quantized["fp16"], "the cat", "-n", "2")
    assert outcome.status == 0 and "fp16 in fp32 on a CPU" in outcome.err
    assert "fp32" not in gptx("run", "-m", quantized["fp16"], "the cat", "-n", "2", "--quiet").err
