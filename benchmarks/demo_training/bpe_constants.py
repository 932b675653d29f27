"""What model and tokenizer agree on."""

from __future__ import annotations

from typing import Final

VOCAB_SIZE: Final = 4096
END_OF_TEXT: Final = "<|endoftext|>"
END_OF_TEXT_ID: Final = 0
