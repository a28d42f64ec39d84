"""A task's prompt, with as much of the text as the context has room for."""

from __future__ import annotations

from collections.abc import Callable

from gptx.errors import PromptError
from gptx.text.tokenizer import Tokenizer
from gptx.text.truncate import Fitted, fit


def fit_prompt(
    text: str, ask: Callable[[str], str], tokenizer: Tokenizer, *, room: int, n_examples: int
) -> Fitted:
    """The prompt `ask(text)`, cut at the text's end if it has more than `room` tokens.

    ask: puts a text into the template. n_examples: the examples in the template.

    Raises PromptError if template and examples leave no room for the first word of the text.
    """
    fitted = fit(text, ask, tokenizer, room)
    if fitted is not None:
        return fitted
    taken = len(tokenizer.encode(ask("")))
    left = f"the model's context leaves room for {max(room, 0)}"
    if n_examples:
        examples = f"{n_examples} examples take" if n_examples > 1 else "the example takes"
        raise PromptError(
            f"{examples} {taken} tokens with the template, and {left}: give fewer or shorter ones"
        )
    raise PromptError(f"the template alone takes {taken} tokens, and {left}")
