"""How much memory running requests will still want, as far as anyone can know."""

from __future__ import annotations

INITIAL_RATIO = 0.7
MIN_RATIO_FACTOR = 0.14
DECAY_ITERATIONS = 600
RETRACT_LOOKAHEAD = 20
MOST_EXPECTED_TOKENS = 4096


class NewTokenRatio:
    """The share of their remaining max_tokens that running requests are expected to generate.

    It starts pessimistic, falls with every decode iteration in which memory sufficed, and jumps
    back when requests had to be retracted; after an idle time it starts over. The method and its
    constants are those of SGLang's scheduler (`new_token_ratio`, `schedule_conservativeness`); here
    the decay is a closed form of the iteration, so that skipping iterations changes nothing. As
    there, nobody is expected to
    generate more than `MOST_EXPECTED_TOKENS` (`CLIP_MAX_NEW_TOKENS`) more, whatever max_tokens
    says: clients often allow all that the context holds.
    """

    def __init__(self, conservativeness: float, iteration: int = 0) -> None:
        self._initial = min(INITIAL_RATIO * conservativeness, 1.0)
        self._least = self._initial * MIN_RATIO_FACTOR
        self._decay = (self._initial - self._least) / DECAY_ITERATIONS
        self._start = self._initial
        self._start_iteration = iteration

    def at(self, iteration: int) -> float:
        """The ratio at a decode iteration, between 0 and 1."""
        return max(self._start - self._decay * (iteration - self._start_iteration), self._least)

    def restart(self, iteration: int) -> None:
        """Nobody ran any more: what was learnt of those texts says nothing of the next ones."""
        self._start = self._initial
        self._start_iteration = iteration

    def retracted(self, iteration: int, generated: int, running: int, max_tokens: int) -> None:
        """Pages ran out: estimate anew from what the remaining running requests did so far.

        Args:
            iteration: the present decode iteration.
            generated: tokens they have generated.
            running: how many they are.
            max_tokens: sum of their max_tokens.
        """
        expected = generated + RETRACT_LOOKAHEAD * running
        self._start = min(1.0, expected / max_tokens) if max_tokens else self._initial
        self._start = max(self._start, self._least)
        self._start_iteration = iteration
