"""Small tokenizers of the kinds that checkpoints have."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

LINES = [
    "the cat sat on the mat and the dog sat on the log. How are you? I'm fine, thank you. "
] * 5


def byte_level(
    special: Sequence[str] = ("<|endoftext|>",), *, add_prefix_space: bool = False
) -> Tokenizer:
    """A byte-level BPE, like GPT-2's."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator(LINES, trainer)
    return inner


def llama_pieces() -> tuple[dict[str, int], list[tuple[str, str]]]:
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words += ["▁", *"abcthesndogm.", "▁t", "▁th", "▁the", "▁c", "at", "▁cat"]
    merges = [("▁", "t"), ("▁t", "h"), ("▁th", "e"), ("▁", "c"), ("a", "t"), ("▁c", "at")]
    return {word: number for number, word in enumerate(words)}, merges


def llama() -> Tokenizer:
    """SentencePiece's BPE with byte tokens, like LLaMA's. <s> is put in front of each text."""
    ids, merges = llama_pieces()
    inner = Tokenizer(models.BPE(ids, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    inner.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    parts: list[decoders.Decoder] = [
        decoders.Replace("▁", " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
    ]
    inner.decoder = decoders.Sequence([*parts, decoders.Strip(" ", 1, 0)])
    inner.add_special_tokens(["<unk>", "<s>", "</s>"])
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return inner


def word_piece() -> Tokenizer:
    """WordPiece, like BERT's."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz", *".,?!'-"]
    words += [f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"] + ["the", "cat", "##at"]
    inner = Tokenizer(
        models.WordPiece({word: number for number, word in enumerate(words)}, unk_token="[UNK]")
    )
    inner.normalizer = normalizers.BertNormalizer(lowercase=False)
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.WordPiece()
    return inner
