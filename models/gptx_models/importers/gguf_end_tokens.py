"""The tokens that end a text in a GGUF file: llama.cpp's special_eog_ids (src/llama-vocab.cpp)."""

from __future__ import annotations

from gptx_models.importers.gguf_vocabulary import GgufVocabulary

# Tokens with these texts end a text, whatever the file's ids say.
_END_TEXTS = {
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<｜end▁of▁sentence｜>",
    "[e~[",
}
# Texts of fill-in-the-middle tokens of code models, by the token's name in read_special_ids. The
# vocabulary is searched for these texts only if the metadata gives no id for the name.
_FIM_TEXTS = {
    "fim_pad": ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    "fim_rep": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    "fim_sep": ("<|file_sep|>",),
}


def end_tokens(ids: dict[str, int | None], vocab: GgufVocabulary) -> list[int]:
    """The ids of the tokens that end a text, eos first.

    ids: the special tokens that the file names (see read_special_ids).
    """
    id_of = {token: token_id for token_id, token in enumerate(vocab.tokens)}
    candidates = [ids[name] for name in ("eos", "eot", "eom")]
    candidates += [_fim_id(name, ids, id_of) for name in _FIM_TEXTS]
    candidates += [token_id for token, token_id in id_of.items() if token in _END_TEXTS]
    texts = {token_id: vocab.tokens[token_id] for token_id in candidates if token_id is not None}
    no_ends = _texts_that_do_not_end(set(texts.values()))
    return [token_id for token_id, text in texts.items() if text not in no_ends]


def _fim_id(name: str, ids: dict[str, int | None], id_of: dict[str, int]) -> int | None:
    """A fill-in-the-middle token's id, from its key or else by a known text; None if none."""
    if ids[name] is not None:
        return ids[name]
    return next((id_of[text] for text in _FIM_TEXTS[name] if text in id_of), None)


def _texts_that_do_not_end(texts: set[str]) -> set[str]:
    """The candidates that end no turn in some models, so generation must go on after them.

    texts: the texts of all candidates for end tokens; the model is recognized by them.
    """
    found: set[str] = set()
    if texts & {"<|call|>", "<|calls|>"} and texts & {"<|return|>", "<|flush|>"}:
        found.add("<|end|>")  # gpt-oss and Solar: ends a message
    if "<|tool_response>" in texts:
        found.add("</s>")  # Gemma 4
    return found
