"""How long a request may be that a deployment can serve."""

from __future__ import annotations

from dataclasses import dataclass

from workbench.record.header import ReplicaFacts


@dataclass(frozen=True, slots=True)
class Capacity:
    """What bounds a request.

    Attributes:
        model: its name.
        max_model_len: its context length in tokens.
        replicas: KV pools; () as long as their sizes are not known.
        prefill_budget: prompt tokens that one step may compute.
    """

    model: str
    max_model_len: int
    replicas: tuple[ReplicaFacts, ...]
    prefill_budget: int

    @property
    def max_context_tokens(self) -> int:
        """The longest prompt + max_tokens that every replica can serve.

        One more than the pages hold, because the last token's KV is never written.
        """
        pools = (facts.num_pages * facts.page_size + 1 for facts in self.replicas)
        return min(self.max_model_len, *pools) if self.replicas else self.max_model_len

    def lines(self) -> tuple[str, ...]:
        """What bounds prompt and output together, one line per bound."""
        pools = (
            f"KV cache: {facts.num_pages:,} pages * {facts.page_size} tokens = "
            f"{facts.num_pages * facts.page_size:,} tokens; the last token needs none"
            for facts in dict.fromkeys(self.replicas)
        )
        return (f"context length of {self.model}: {self.max_model_len:,} tokens", *pools)
