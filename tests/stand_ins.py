"""Small hub folders with the tokenizer files of every GLM family, trained on a given text."""

import base64
import io
import json
from pathlib import Path

import sentencepiece
import tokenizers
from sentencepiece import sentencepiece_model_pb2
from tokenizers import decoders, models, pre_tokenizers, trainers

from glm_jax.tokenizer.build_json import BYTE_CHARACTERS, GLM4_PATTERN

Piece = sentencepiece_model_pb2.ModelProto.SentencePiece
ENGLISH = [
    "The cat sat on the mat and looked at the dog.",
    "Paris is the capital of France, and Berlin is the capital of Germany.",
    "It was the best of times, it was the worst of times; we had 12345 things.",
    "for i in range(10):  print(i)    # (brackets) -- and more!",
    "< a > [ b ] c | d / e 4 1 0 x M A S K g o p",
]
CHINESE = [
    "北京是中国的首都，上海是中国最大的城市。",
    "今天天气很好，我们去公园散步吧！",
    "学而时习之，不亦说乎？有朋自远方来，不亦乐乎？",
]
TEXTS = [*ENGLISH, *CHINESE] * 20

# What a vocabulary may do with white space, forms of characters, symbols and unknown characters.
ODD_TEXTS = (
    "",
    " ",
    "   ",
    "\n",
    " the cat",
    "the  cat   sat \t on\n\nthe mat ",
    "\tthe\r\nmat\r\n",
    "the" + " " * 81 + "mat" + " " * 160 + "sat" + " " * 82,
    "\u3000全角\u3000ＡＢ１２",
    "e\u0301 é ﬁ ① ½",
    "emoji \U0001f468\u200d\U0001f469 and ❤\ufe0f",
    "rare \U00020000龘 the \x00\x7f\u200b\ufeff",
    "<n><|tab|><|blank_3|> x<n>y <n> z",
    "[MASK] [gMASK]<sop> </s> <unk> <|endoftext|> <0x41>",
    "\u2581 the\u2581cat",
    "don't  we'll 2024年10月3日 http://a.b/c?d=e&f",
    "ААbb漢字かなカナ한국어",
)


def sentencepiece_model(texts=TEXTS, **changes) -> bytes:
    """A trained model; unigram with nmt_nfkc and a dummy space unless `changes` say otherwise."""
    options = {
        "model_type": "unigram",
        "vocab_size": 300,
        "character_coverage": 1.0,
        "hard_vocab_limit": False,
        "unk_id": 0,
        "bos_id": 1,
        "eos_id": 2,
        "user_defined_symbols": ["<n>"],
        "minloglevel": 2,
    }
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=model, **options | changes
    )
    return model.getvalue()


def bytes_of(text: str) -> str:
    """`text` as a byte-level vocabulary writes it."""
    return "".join(BYTE_CHARACTERS[byte] for byte in text.encode())


def byte_bpe(texts=TEXTS, vocab_size=400) -> tuple[dict[str, int], list[list[str]]]:
    """Vocabulary and merges of a trained byte-level BPE; the 256 bytes come first."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], model["merges"]


def glm_bert(folder: Path, texts=TEXTS) -> None:
    tokenizer = tokenizers.BertWordPieceTokenizer(lowercase=True)
    tokenizer.train_from_iterator(texts, vocab_size=400, min_frequency=1, show_progress=False)
    vocab = tokenizer.get_vocab()
    (folder / "vocab.txt").write_text("".join(p + "\n" for p in sorted(vocab, key=vocab.get)))
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": true}')


def glm_gpt2(folder: Path, texts=TEXTS) -> None:
    vocab, merges = byte_bpe(texts)
    _write_bpe(folder, vocab | {"<|endoftext|>": len(vocab)}, merges)


def glm_roberta(folder: Path, texts=TEXTS) -> None:
    vocab, merges = byte_bpe(texts)
    special = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3}
    vocab = special | {piece: index + 4 for piece, index in vocab.items()}
    _write_bpe(folder, vocab | {"<mask>": len(vocab)}, merges)


def glm_chinese(folder: Path, texts=TEXTS, **changes) -> None:
    (folder / "cog-pretrain.model").write_bytes(sentencepiece_model(texts, **changes))


def chatglm(folder: Path, texts=TEXTS, **changes) -> None:
    options = {"pad_id": 3, "remove_extra_whitespaces": False}
    (folder / "ice_text.model").write_bytes(sentencepiece_model(texts, **options | changes))


def chatglm2(folder: Path, texts=TEXTS, **changes) -> None:
    options = {
        "model_type": "bpe",
        "vocab_size": 420,
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "user_defined_symbols": [],
    }
    (folder / "tokenizer.model").write_bytes(sentencepiece_model(texts, **options | changes))


def chatglm3(folder: Path, texts=TEXTS) -> None:
    chatglm2(folder, texts)
    (folder / "tokenization_chatglm.py").write_text('role_special_tokens = ["<|system|>"]\n')


GLM4_SPECIALS = ["<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>", "<|user|>"]


def glm4(folder: Path, texts=TEXTS) -> None:
    """The native release: its added tokens have their ids in the file."""
    vocab, merges = byte_bpe(texts)
    pairs = [tuple(pair) for pair in merges]
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab, pairs, ignore_merges=True))
    split = pre_tokenizers.Split(tokenizers.Regex(GLM4_PATTERN), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(GLM4_SPECIALS)
    tokenizer.save(str(folder / "tokenizer.json"))


def glm4_tiktoken(folder: Path, texts=TEXTS) -> None:
    """The remote-code release: bytes and ranks; the special tokens are in its code."""
    (folder / "tokenizer.model").write_bytes(tiktoken_file(tiktoken_ranks(texts)))


def tiktoken_ranks(texts=TEXTS) -> dict[bytes, int]:
    vocab, _ = byte_bpe(texts)
    byte = {character: value for value, character in BYTE_CHARACTERS.items()}
    return {bytes(byte[c] for c in piece): index for piece, index in vocab.items()}


def tiktoken_file(ranks: dict[bytes, int]) -> bytes:
    lines = [b"%s %d\n" % (base64.b64encode(token), rank) for token, rank in ranks.items()]
    return b"".join(lines)


FAMILIES = {
    make.__name__: make
    for make in (
        glm_bert,
        glm_gpt2,
        glm_roberta,
        glm_chinese,
        chatglm,
        chatglm2,
        chatglm3,
        glm4,
        glm4_tiktoken,
    )
}


def _write_bpe(folder: Path, vocab: dict[str, int], merges: list) -> None:
    (folder / "vocab.json").write_text(json.dumps(vocab))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n")
