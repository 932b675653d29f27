"""The byte-level BPE tokenizer: trained on the training text, written as a tokenizer.json.

One special token ends a text and, as in GPT-2, begins one: each piece of the training text is
followed by it, and the tokenizer puts it before a prompt.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from demo_training.bpe_constants import END_OF_TEXT, END_OF_TEXT_ID, VOCAB_SIZE
from demo_training.corpus import Document

_SAMPLE_BYTES: Final = 40_000_000  # more changes little, and takes minutes
_BATCH: Final = 256


def train_tokenizer(documents: Sequence[Document]) -> Tokenizer:
    """A tokenizer for these texts; the same texts give the same tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_sample(documents), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{END_OF_TEXT} $A", special_tokens=[(END_OF_TEXT, END_OF_TEXT_ID)]
    )
    return tokenizer


def _sample(documents: Sequence[Document]) -> Iterator[str]:
    taken = 0
    for document in documents:
        yield document.text
        taken += len(document.text)
        if taken > _SAMPLE_BYTES:
            return


def save_tokenizer(tokenizer: Tokenizer, folder: Path, max_model_len: int) -> None:
    """Write tokenizer.json and tokenizer_config.json."""
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_model_len,
    }
    text = json.dumps(config, indent=2) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")


def encode(tokenizer: Tokenizer, documents: Sequence[Document]) -> NDArray[np.uint16]:
    """All pieces one after the other, an end of text before the first and after each."""
    pieces = [piece for document in documents for piece in document.pieces()]
    parts: list[list[int]] = [[END_OF_TEXT_ID]]
    for at in range(0, len(pieces), _BATCH):
        batch = tokenizer.encode_batch(pieces[at : at + _BATCH], add_special_tokens=False)
        for encoding in batch:
            parts.append(encoding.ids)
            parts.append([END_OF_TEXT_ID])
    return np.fromiter((token for part in parts for token in part), np.uint16)
