"""A chat template in Jinja: the messages of a conversation in, the text of the prompt out.

Templates run in a sandbox, with the filters and functions that transformers gives them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from gptx.arguments import is_list
from gptx.artifact.json_files import read_side_file
from gptx.errors import ArtifactError, PromptError, UsageError, shown

Message = Mapping[str, Any]  # {"role": "system" | "user" | "assistant", "content": text}
_EXPECTED = '{"role": "user", "content": "..."}'


class ChatTemplate:
    """A chat template. `source` is its text in Jinja.

    special: the texts of the special tokens by their names (bos_token, eos_token); templates use
    them as variables. path: the file that error messages name.

    Threads: any number of threads may render with one template at the same time.
    """

    def __init__(
        self, source: str, special: Mapping[str, str], *, path: Path | None = None
    ) -> None:
        self.source: str = source
        self._special = dict(special)
        self._path = path or "the chat template"
        self._date: datetime | None = None  # None: the current date
        self._template: Any = None  # the compiled template; None before the first use

    def with_date(self, date: datetime) -> ChatTemplate:
        """The same template with a fixed date.

        Templates that write today's date (strftime_now) then give the same text on every day.
        """
        other = ChatTemplate(self.source, self._special)
        other._path, other._date = self._path, date
        return other

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """The prompt of a conversation.

        add_generation_prompt: end with the beginning of the assistant's answer.

        Raises UsageError with the template's own words if the template refuses the messages.
        Raises PromptError if `messages` is not a list of messages. Raises ArtifactError if the
        template is broken, or exceeds its limits of time or memory (template_budget.py).
        """
        import jinja2

        from gptx.text.template_budget import Budget, TemplateStopped, limited_by

        checked = checked_messages(messages)
        try:
            if self._template is None:
                self._template = self._compile()
            with limited_by(Budget(checked)):
                return self._template.render(
                    messages=checked,
                    tools=None,
                    documents=None,
                    add_generation_prompt=add_generation_prompt,
                    **self._special,
                )
        except _Refused as error:
            raise UsageError(f"the chat template refuses these messages: {error}") from error
        except TemplateStopped as error:
            raise ArtifactError(f"{self._path} was stopped: {error}") from error
        except MemoryError as error:
            raise ArtifactError(f"{self._path} needs more memory than there is") from error
        except (
            jinja2.TemplateError,
            TypeError,
            ValueError,
            LookupError,
            ArithmeticError,
            RecursionError,
        ) as error:
            raise ArtifactError(f"{self._path} failed: {error}") from error

    def _compile(self) -> Any:
        import jinja2

        environment = _environment()
        if self._date is not None:
            environment.globals["strftime_now"] = self._date.strftime
        try:
            return environment.from_string(environment.limited(self.source))
        except jinja2.TemplateSyntaxError as error:
            raise ArtifactError(
                f"{self._path} is not a template, line {error.lineno}: {error.message}"
            ) from error
        except (RecursionError, SyntaxError, MemoryError):
            # Jinja makes Python code of a template, and Python's compiler limits the nesting
            raise ArtifactError(
                f"{self._path} is not a template that can be read: it nests too deep"
            ) from None


def checked_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Copies of a conversation's messages. Raises PromptError for a value that is no message.

    Without this check the template would fail, and the error would blame the template.
    """
    if not is_list(messages):
        raise PromptError(
            f"the messages are {shown(messages)}, expected a list of messages such as {_EXPECTED}"
        )
    for number, message in enumerate(messages, 1):
        _check_message(number, message)
    return [dict(message) for message in messages]


def _check_message(number: int, message: Any) -> None:
    if not isinstance(message, Mapping) or not all(isinstance(name, str) for name in message):
        raise PromptError(f"message {number} is {shown(message)}, expected {_EXPECTED}")
    role, content = message.get("role", ""), message.get("content")
    if not isinstance(role, str):
        raise PromptError(f"the role of message {number} is {shown(role)}, expected {_EXPECTED}")
    # Also accepted: a list of parts, and no content if there are other fields (tool calls). The
    # template decides whether it supports them.
    accepted = isinstance(content, str | list) or (
        content is None and not set(message) <= {"role", "content"}
    )
    if not accepted:
        raise PromptError(f"the content of message {number} is {shown(content)}, expected a text")


class _Refused(Exception):
    """The template called raise_exception()."""


def _environment() -> Any:
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser

    from gptx.text.template_sandbox import LimitedEnvironment

    class Generation(Extension):
        """{% generation %}...{% endgeneration %} renders as its content.

        transformers uses the tag in training, to find the assistant's part of a conversation.
        """

        tags = {"generation"}

        def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body).set_lineno(line)

    environment = LimitedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    environment.limit_filters()
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    """The filter `tojson`. Jinja's own would escape HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> None:
    raise _Refused(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def load_template(folder: Path, special: Mapping[str, str]) -> ChatTemplate | None:
    """The chat template of a folder; None if it has none.

    Reads chat_template.jinja, or else the field chat_template of tokenizer_config.json. Raises
    ArtifactError.
    """
    path = folder / "chat_template.jinja"
    if path.exists():
        try:
            return ChatTemplate(path.read_text(encoding="utf-8"), special, path=path)
        except (OSError, UnicodeError) as error:
            raise ArtifactError(f"{path} cannot be read ({error})") from error
    path = folder / "tokenizer_config.json"
    try:
        source = default_template(read_side_file(path).get("chat_template"))
    except ValueError as error:
        raise ArtifactError(f"{path}: {error}") from error
    return None if source is None else ChatTemplate(source, special, path=path)


def default_template(value: Any) -> str | None:
    """The template in a tokenizer_config.json's field chat_template; None if there is none.

    The field is a text, or a list of templates with names, of which the template
    named "default" is taken. Raises ValueError for anything else.
    """
    found = value
    if isinstance(value, list) and all(isinstance(entry, dict) for entry in value):
        found = {str(entry.get("name")): entry.get("template") for entry in value}.get("default")
    if found is not None and not isinstance(found, str):
        raise ValueError(
            f"chat_template is {value!r:.80}, expected a text or a list of named texts"
        )
    return found or None
