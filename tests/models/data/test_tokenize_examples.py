"""Examples become rows of token ids whose targets are the answers, tokenized as in generation.

Conversations are compared with the assistant's mask of transformers, which it makes from the
{% generation %} marks of a template.
"""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer as Inner
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from gptx.artifact.task import CLASSIFY_TEMPLATE, SUMMARIZE_TEMPLATE, Task
from gptx.errors import UsageError
from gptx.text.chat_template import ChatTemplate
from gptx.text.tokenizer import Tokenizer
from gptx_models.data.batches import TokenRow
from gptx_models.data.examples import Example
from gptx_models.data.tokenize_examples import (
    answer_text,
    end_of_turn,
    prompt_ids,
    tokenize_examples,
)
from gptx_models.training.loss import IGNORED

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEXT = (
    "Text: the cat sat on the mat\nLabel: good\n\nSummary: the dog sat on the log\nuser assistant"
    " system\n" * 3
)
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>'"
    " }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def byte_level() -> Inner:
    inner = Inner(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator([TEXT], trainer)
    return inner


def sentence_piece() -> Inner:
    """As Llama 2's: a space is put before every text."""
    inner = Inner(models.BPE(unk_token="<unk>"))
    inner.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    inner.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Strip(" ", 1, 0)])
    trainer = trainers.BpeTrainer(
        vocab_size=120, special_tokens=["<unk>", *SPECIAL], show_progress=False
    )
    inner.train_from_iterator(
        [part for part in TEXT.split("\n") for part in part.split(" ")], trainer
    )
    return inner


TOKENIZER = Tokenizer(byte_level())
END = 0
CLASSIFY = Task("classify", CLASSIFY_TEMPLATE, ("good", "bad"))


def trained(row: TokenRow) -> list[int]:
    assert len(row.inputs) == len(row.targets)
    return [token for token in row.targets.tolist() if token != IGNORED]


def ids_of(row: TokenRow) -> list[int]:
    """All of its tokens: each target is the token that comes next."""
    ids = row.inputs.tolist()
    assert all(t in (IGNORED, following) for t, following in zip(row.targets.tolist(), ids[1:]))
    return [*ids, row.targets.tolist()[-1]]


def only(examples: list[Example], task: Task, **options) -> TokenRow:
    [row] = tokenize_examples(
        examples, task, TOKENIZER, **{"n_ctx": 128, "end": END, **options}
    ).rows
    return row


def test_only_the_answer_and_the_end_are_targets():
    row = only([Example("", "the cat", ("good",))], CLASSIFY)
    prompt = TOKENIZER.encode("Text: the cat\nLabel:")
    answer = TOKENIZER.encode(" good")
    assert ids_of(row) == [*prompt, *answer, END]
    assert row.targets.tolist() == [IGNORED] * (len(prompt) - 1) + [*answer, END]


def test_a_completion_stands_as_it_is_and_an_instruction_in_its_template():
    row = only([Example("", "the cat", ("sat\n", "never a target"))], Task("completion"))
    assert TOKENIZER.decode(ids_of(row), skip_special_tokens=False) == "the catsat\n<|endoftext|>"
    assert TOKENIZER.decode(trained(row), skip_special_tokens=False) == "sat\n<|endoftext|>"
    row = only([Example("", "the cat", ("sat",))], Task("completion", "Do {text}:"))
    assert (
        TOKENIZER.decode(ids_of(row), skip_special_tokens=False) == "Do the cat: sat<|endoftext|>"
    )


def test_without_an_end_of_text_the_answer_is_the_last():
    row = only([Example("", "the cat", ("good",))], CLASSIFY, end=None)
    assert trained(row) == TOKENIZER.encode(" good")


@pytest.mark.parametrize("inner", [byte_level(), sentence_piece()])
def test_an_answer_goes_on_from_its_prompt(inner: Inner):
    """A row is the tokenization of the whole text; SentencePiece puts a space before an answer
    alone.
    """
    tokenizer = Tokenizer(inner)
    example = Example("", "the cat", ("good",))
    [row] = tokenize_examples([example], CLASSIFY, tokenizer, n_ctx=128, end=None).rows
    assert ids_of(row) == inner.encode("Text: the cat\nLabel: good").ids


def test_where_one_token_would_join_both_the_prompt_keeps_its_own():
    joined = TOKENIZER.encode("the")
    assert len(joined) == 1
    row = only([Example("", "on t", ("he",))], Task("completion"))
    assert ids_of(row) == [*TOKENIZER.encode("on t"), *TOKENIZER.encode("he"), END]


def test_a_text_that_is_too_long_loses_its_end():
    task = Task("summarize", SUMMARIZE_TEMPLATE)
    examples = [
        Example("", "the cat sat on the mat " * length + "end", ("the dog",)) for length in (1, 40)
    ]
    rows = tokenize_examples(examples, task, TOKENIZER, n_ctx=60, end=END)
    assert (len(rows.rows), rows.cut, rows.left_out) == (2, 1, 0)
    assert str(rows) == "longer than the context of 60 tokens: 1 cut"
    text = TOKENIZER.decode(ids_of(rows.rows[1]))
    assert text.startswith("the cat sat on the mat the cat ") and text.endswith(
        "\n\nSummary: the dog"
    )
    assert text.split("\n\n")[0].split()[-1] in {
        "the",
        "cat",
        "sat",
        "on",
        "mat",
    }  # no word is cut through
    assert 55 < len(rows.rows[1].inputs) <= 60


def test_text_without_spaces_is_cut_too():
    row = only([Example("", "猫" * 100, ("good",))], CLASSIFY, n_ctx=80)
    assert TOKENIZER.decode(ids_of(row)) == "Text: " + "猫" * 20 + "\nLabel: good"


def test_what_cannot_be_cut_is_left_out():
    examples = [
        Example("", "the cat " * 50, ("sat",)),
        Example("", "the cat", ("sat " * 50,)),
        Example("", "a", ("b",)),
    ]
    rows = tokenize_examples(examples, Task("completion"), TOKENIZER, n_ctx=30, end=END)
    assert (len(rows.rows), rows.cut, rows.left_out) == (1, 0, 2)
    assert str(rows) == "longer than the context of 30 tokens: 2 left out"
    rows = tokenize_examples(
        examples[1:], Task("summarize", SUMMARIZE_TEMPLATE), TOKENIZER, n_ctx=30, end=END
    )
    assert (len(rows.rows), rows.left_out) == (1, 1)
    with pytest.raises(UsageError, match="no example fits into the model's context of 5 tokens"):
        tokenize_examples(examples[:2], Task("completion"), TOKENIZER, n_ctx=5, end=END)


def test_a_row_may_fill_the_context_and_its_last_token_lies_beyond():
    example = Example("", "the cat", ("good",))
    length = len(ids_of(only([example], CLASSIFY)))
    rows = tokenize_examples([example], CLASSIFY, TOKENIZER, n_ctx=length - 1, end=END)
    assert (len(rows.rows[0].inputs), rows.cut) == (length - 1, 0)
    assert tokenize_examples([example], CLASSIFY, TOKENIZER, n_ctx=length - 2, end=END).cut == 1


def test_a_head_has_the_class_as_target_of_the_last_token():
    task = Task("classify", labels=("good", "bad"), head=True)
    rows = tokenize_examples(
        [Example("", "the cat", ("bad",)), Example("", "the cat " * 30, ("good",))],
        task,
        TOKENIZER,
        n_ctx=20,
        end=END,
    )
    ids = TOKENIZER.encode("the cat")
    assert rows.rows[0].inputs.tolist() == ids
    assert rows.rows[0].targets.tolist() == [IGNORED] * (len(ids) - 1) + [1]
    assert len(rows.rows[1].inputs) <= 20 and rows.rows[1].targets[-1] == 0 and rows.cut == 1
    framed = Task("classify", "Text: {text}\nLabel:", ("good", "bad"), head=True)
    assert only([Example("", "the cat", ("bad",))], framed).inputs.tolist() == TOKENIZER.encode(
        "Text: the cat\nLabel:"
    )


@pytest.mark.parametrize("head", [False, True])
def test_a_label_that_is_none(head: bool):
    task = Task("classify", None if head else CLASSIFY_TEMPLATE, ("good", "bad"), head=head)
    with pytest.raises(
        UsageError, match=r"a\.csv, line 3: the label 'fine' is not one of the task's 2"
    ):
        tokenize_examples(
            [Example("a.csv, line 3", "the cat", ("fine",))], task, TOKENIZER, n_ctx=128, end=END
        )


def test_prompts_to_generate_from_are_those_of_the_rows():
    task = Task("summarize", SUMMARIZE_TEMPLATE)
    row = only([Example("", "the cat", ("the dog",))], task)
    found = prompt_ids("the cat", task, TOKENIZER, room=50)
    assert found and found.ids == ids_of(row)[: len(found.ids)] and not found.left_out
    assert answer_text("the dog", task) == " the dog"
    cut = prompt_ids("the cat " * 30, task, TOKENIZER, room=20)
    assert cut and 0 < len(cut.ids) <= 20 and cut.left_out
    assert prompt_ids("the cat", task, TOKENIZER, room=3) is None


# Conversations

TALK = (
    {"role": "system", "content": "the log"},
    {"role": "user", "content": "the cat"},
    {"role": "assistant", "content": "sat on\nthe mat"},
    {"role": "user", "content": "\nthe dog"},
    {"role": "assistant", "content": "\n sat on the log"},
)


def chat(messages, template: str = CHATML, n_ctx: int = 256):
    return tokenize_examples(
        [Example("a.jsonl, line 1", messages=tuple(messages))],
        Task("chat"),
        TOKENIZER,
        n_ctx=n_ctx,
        end=END,
        template=ChatTemplate(template, {"eos_token": "<|endoftext|>"}),
    )


# special tokens inside an answer
CALLS = ({"role": "assistant", "content": "sat<|im_start|>on<|endoftext|> the mat"},)


@pytest.mark.parametrize(
    "messages",
    [
        TALK,
        TALK[1:],
        TALK[:3],
        (*TALK, {"role": "user", "content": "unanswered"}),
        TALK[:2] + CALLS + TALK[3:],
    ],
)
def test_the_targets_of_a_conversation_are_transformers_mask(messages):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_object=byte_level(), chat_template=CHATML
    )
    expected = theirs.apply_chat_template(
        list(messages), return_dict=True, return_assistant_tokens_mask=True
    )
    mask = [bool(m) for m in expected["assistant_masks"]]
    last = max(at for at, m in enumerate(mask) if m)
    [row] = chat(messages).rows
    assert ids_of(row) == expected["input_ids"][: last + 1]
    assert [target != IGNORED for target in row.targets] == mask[1 : last + 1]


def test_every_answer_follows_the_ids_that_the_runtime_feeds():
    """Also if the template renders earlier turns differently later: then there are several rows."""
    shown = "(message['content'] if loop.last else '...')"
    forgetful = CHATML.replace(
        "{% generation %}{{ message['content']", "{% generation %}{{ " + shown
    )
    for template, count in ((CHATML, 1), (forgetful, 2)):
        rows = chat(TALK, template).rows
        assert len(rows) == count
        for turn in (2, 4):
            fed = TOKENIZER.encode(
                ChatTemplate(template, {}).render(TALK[:turn]), add_special_tokens=False
            )
            row = next(
                row
                for row in rows
                if ids_of(row)[: len(fed)] == fed and row.targets[len(fed) - 1] != IGNORED
            )
            answer = TOKENIZER.encode(TALK[turn]["content"]) + [2]
            assert row.targets.tolist()[len(fed) - 1 :][: len(answer)] == answer
        assert sum(len(trained(row)) for row in rows) == sum(
            len(TOKENIZER.encode(TALK[t]["content"])) + 1 for t in (2, 4)
        )


def test_turns_that_do_not_fit_are_left_out():
    whole = len(chat(TALK).rows[0].inputs)
    assert chat(TALK, n_ctx=whole).cut == 0
    rows = chat(TALK, n_ctx=whole - 1)
    assert (len(rows.rows), rows.cut, rows.left_out) == (1, 1, 0)
    assert ids_of(rows.rows[0]) == ids_of(chat(TALK[:3]).rows[0])
    with pytest.raises(UsageError, match="no example fits"):
        chat(TALK, n_ctx=10)


def test_a_template_without_an_end_of_turn_gets_the_end_of_text():
    plain = CHATML.replace("<|im_end|>", "")
    [row] = chat(TALK[1:3], plain).rows
    assert ids_of(row)[-1] == END
    assert end_of_turn(ChatTemplate(plain, {}), TOKENIZER) is None
    assert end_of_turn(ChatTemplate(CHATML, {}), TOKENIZER) == 2


def test_templates_that_cannot_be_used():
    with pytest.raises(
        UsageError,
        match="line 1: the chat template writes an answer otherwise than it asks for one",
    ):
        chat(TALK, CHATML.replace("{{ '<|im_start|>assistant\\n' }}", "{{ '<|im_start|>model' }}"))
    with pytest.raises(
        UsageError, match="line 1: the chat template refuses these messages: no system"
    ):
        chat(
            TALK,
            "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}",
        )
    with pytest.raises(UsageError, match="has no chat template"):
        tokenize_examples([Example("", messages=TALK)], Task("chat"), TOKENIZER, n_ctx=128, end=END)
