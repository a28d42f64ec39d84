"""Chat templates, compared with transformers, and conversations that feed only new tokens."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pytest

import gptx
from builders.tiny_artifact import write_artifact
from gptx.errors import ArtifactError, PromptError, UsageError
from gptx.kv_cache.rows import Rows
from gptx.model import Model
from gptx.text.chat_template import ChatTemplate, load_template
from gptx.text.prefix import common_length

CHATML = """{%- for message in messages %}
    {%- if loop.first and message.role != 'system' %}
        {{- '<|im_start|>system\\nYou are a model.<|im_end|>\\n' }}
    {%- endif %}
    {{- '<|im_start|>' + message['role'] + '\\n' }}
    {{- message['content'] | trim + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
PLAIN = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": " <b>What?</b> "},
    {"role": "assistant", "content": "That."},
    {"role": "user", "content": "Why & how?"},
]
TEMPLATES = {
    "chatml": CHATML,
    "plain": PLAIN,
    "trim_blocks": "{% for m in messages %}\n  {% if m.role == 'user' %}\n"
    "  [{{ m.content }}]\n  {% endif %}\n"
    "{% endfor %}\n{{ bos_token }}",
    "tojson": "{{ messages | tojson }}{{ messages[0] | tojson(indent=2) }}",
    "loopcontrols": "{% for m in messages %}{% if m.role == 'assistant' %}{% break %}{% endif %}"
    "{{ m }}{% endfor %}",
    "generation": "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}"
    "{% endfor %}",
    "date": "{{ strftime_now('%Y') }}",
    "tools": "{% if tools %}tools{% else %}none{% endif %}{{ missing is defined }}",
    "namespace": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}"
    "{% endfor %}{{ ns.n }}",
}


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("add_generation_prompt", [True, False])
def test_as_hugging_face(name: str, add_generation_prompt: bool) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    special = {"bos_token": "<s>", "eos_token": "</s>"}
    ours = ChatTemplate(TEMPLATES[name], special).render(
        MESSAGES, add_generation_prompt=add_generation_prompt
    )
    theirs, _ = render_jinja_template(
        conversations=[MESSAGES],
        chat_template=TEMPLATES[name],
        add_generation_prompt=add_generation_prompt,
        **special,
    )
    assert ours == theirs[0]


def test_the_year() -> None:
    assert ChatTemplate(TEMPLATES["date"], {}).render(MESSAGES) == str(datetime.now().year)


def test_a_template_that_refuses() -> None:
    template = ChatTemplate("{{ raise_exception('roles must alternate') }}", {})
    with pytest.raises(
        UsageError, match="the chat template refuses these messages: roles must alternate"
    ):
        template.render(MESSAGES)


@pytest.mark.parametrize(
    "source", ["{% if %}", "{{ messages[9].content.x }}", "{{ 1 / 0 }}", "{{ 'a' + 1 }}"]
)
def test_a_broken_template(source: str) -> None:
    with pytest.raises(ArtifactError, match="template"):
        ChatTemplate(source, {}).render(MESSAGES)


@pytest.mark.parametrize("source", ["{{ messages.__class__.__mro__ }}", "{{ messages.append(1) }}"])
def test_a_template_that_leaves_the_sandbox(source: str) -> None:
    with pytest.raises(ArtifactError, match="unsafe|not safely"):
        ChatTemplate(source + "{{ messages.__class__.__mro__[0] }}", {}).render(MESSAGES)


def test_where_templates_are_found(tmp_path: Path) -> None:
    assert load_template(tmp_path, {}) is None
    (tmp_path / "tokenizer_config.json").write_text(
        '{"chat_template": [{"name": "default", "template": "D"}]}'
    )
    template = load_template(tmp_path, {})
    assert template is not None
    assert template.source == "D"
    (tmp_path / "chat_template.jinja").write_text("J")
    template = load_template(tmp_path, {})
    assert template is not None
    assert template.source == "J"


# Conversations


@pytest.fixture(scope="module", params=["shared", "growing"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("chat") / "a"
    return gptx.load(write_artifact(folder, request.param, n_ctx=300, template=PLAIN), threads=1)


def test_a_conversation_is_what_the_whole_prompt_gives(model: Model) -> None:
    chat = model.chat(system="be good")
    for message in ("hello", "the cat sat on what?", "and now?"):
        ids = model.chat_ids([*chat.messages, {"role": "user", "content": message}])
        expected = model.generate(ids, max_new_tokens=10)
        assert chat.send(message, max_new_tokens=10).token_ids == expected.token_ids
    assert [message["role"] for message in chat.messages] == ["system"] + ["user", "assistant"] * 3


def test_a_turn_feeds_only_what_is_new(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    chat = model.chat()
    chat.send("the cat sat on the mat", max_new_tokens=8)
    before = len(chat.tokens)
    fed: list[int] = []
    run = Rows.run
    monkeypatch.setattr(
        Rows, "run", lambda rows, feeds: fed.append(len(feeds[0].ids)) or run(rows, feeds)
    )
    stream = chat.stream("why?", max_new_tokens=3)
    total = len(model.chat_ids([*chat.messages, {"role": "user", "content": "why?"}]))
    list(stream)
    kept = total - fed[0]
    assert kept >= model.chat_ids([{"role": "user", "content": "the cat sat on the mat"}]).__len__()
    assert kept <= before
    assert stream.completion.prompt_tokens == total


def test_an_answer_left_early_stays_as_far_as_it_was_read(model: Model) -> None:
    chat = model.chat()
    stream = chat.stream("hello", temperature=1.0, seed=1, max_new_tokens=30)
    first = next(stream)
    chat.send("go on", max_new_tokens=3)
    assert chat.messages[1] == {"role": "assistant", "content": first}
    assert len(chat.messages) == 4


def test_a_message_that_does_not_fit_changes_nothing(model: Model) -> None:
    chat = model.chat()
    chat.send("hello", max_new_tokens=5)
    messages, tokens = list(chat.messages), chat.tokens
    with pytest.raises(
        PromptError, match=r"the conversation has \d+ tokens with this message, and .* holds 300"
    ):
        chat.stream("x" * 400)
    with pytest.raises(UsageError, match="temperature"):
        chat.stream("hello", temperature=-1)
    with pytest.raises(UsageError, match=r"unknown option max_tim; did you mean max_time\?"):
        chat.stream("hello", max_tim=1)  # type: ignore[call-arg]
    assert (chat.messages, chat.tokens) == (messages, tokens)
    assert chat.send("hello", max_new_tokens=5).token_ids


def test_the_context_runs_full(model: Model) -> None:
    chat = model.chat()
    completion = chat.send("x" * 270, min_new_tokens=100)
    assert completion.finish_reason == "context"
    assert len(chat.tokens) == 300


def test_a_prompt_may_fill_the_context_and_no_more(model: Model) -> None:
    # Tokens of the template: "#" is one token.
    taken = len(model.chat_ids([{"role": "user", "content": "#"}])) - 1
    chat = model.chat()
    with pytest.raises(
        PromptError, match="the conversation has 301 tokens with this message, and .* holds 300"
    ):
        chat.stream("#" * (301 - taken))
    assert len(chat.send("#" * (300 - taken)).token_ids) == 1


def test_an_answer_has_no_default_limit(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gptx.engine.loaded_model.MAX_NEW_TOKENS", 1)
    completion = model.chat().send("hello")
    assert len(completion.token_ids) > 1
    assert completion.finish_reason in ("stop", "context")


def test_reset(model: Model) -> None:
    chat = model.chat(system="be good")
    first = chat.send("hello", max_new_tokens=6).token_ids
    chat.send("again", max_new_tokens=6)
    chat.reset()
    assert chat.messages == [{"role": "system", "content": "be good"}]
    assert chat.send("hello", max_new_tokens=6).token_ids == first
    chat.close()
    unled = model.chat()
    unled.send("hello", max_new_tokens=6)
    unled.reset()
    assert unled.messages == []


def test_leaving_a_with_block_closes_the_chat(model: Model) -> None:
    with model.chat() as chat:
        answer = chat.stream("tell me", max_new_tokens=5)
        next(answer)
    assert answer.completion.finish_reason == "closed"
    assert [message["role"] for message in chat.messages] == ["user", "assistant"]
    with pytest.raises(UsageError, match="closed"):
        chat.send("more")


def test_no_template(artifacts: dict[str, Path]) -> None:
    with pytest.raises(UsageError, match="has no chat template"):
        gptx.load(artifacts["shared"], threads=1).chat()


def test_common_length() -> None:
    assert common_length([1, 2, 3], [1, 2, 4]) == 2
    assert common_length([1, 2], [1, 2, 4]) == common_length([1, 2, 4], [1, 2]) == 2
    assert common_length([], [1]) == 0
    assert common_length([1, 2, 3], (1, 2, 3), 2) == 2
    for n in range(40):
        assert common_length([1] * 40, [1] * n + [2] * (40 - n)) == n
