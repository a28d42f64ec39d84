"""A model's tokens as llguidance reads them: the bytes of each, and the tokens of a text."""

from __future__ import annotations

from gptx.text.tokenizer import Tokenizer


class GrammarTokens:
    """A tokenizer in the form that llguidance.TokenizerWrapper takes.

    tokens: the bytes of each token. One more stands at the end: llguidance's end token, in place of
    the end tokens that a Matcher has.
    special_token_ids: tokens that are no text. A grammar can only name them, as in <|im_start|>.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokens = [*tokenizer.token_bytes(), b""]
        self.eos_token_id, self.bos_token_id = len(self.tokens) - 1, None
        self.special_token_ids = [*tokenizer.hidden_ids, self.eos_token_id]
        self._encode = tokenizer.inner_encoder()
        special = set(self.special_token_ids)
        self._texts = [b"" if at in special else text for at, text in enumerate(self.tokens)]
        self._ids = {text: token for token, text in enumerate(self._texts) if text}
        self._longest = max(map(len, self._ids), default=0)

    def __call__(self, text: bytes) -> list[int]:
        """The tokens of a text within a text, in the tokenizer's way if they have its bytes.

        Else, as a normalizer may change the text: each token is the longest that fits, up to where
        none does.
        """
        ids = self._encode(text.decode())
        if b"".join(self._texts[token] for token in ids) == text:
            return ids
        ids = []
        while text:
            sizes = range(min(self._longest, len(text)), 0, -1)
            size = next((size for size in sizes if text[:size] in self._ids), None)
            if size is None:
                break
            ids.append(self._ids[text[:size]])
            text = text[size:]
        return ids
