"""The run that a view shows, and where in it the view is; knows nothing of screens.

    store = RunStore.open(Path("runs/quickstart-1"))    # a recorded run, or:
    store = RunStore(header); store.take(frame); ...    # frames as they come from a child process
    player = Player(store)

    player.play(); player.tick(seconds)                 # once per frame
    steps = store.replicas[player.replica].steps        # columns, aggregates for any zoom
    steps.at(player.position)["prefill_tokens"]
    store.replicas[0].pages_after(player.position)      # who holds each KV page then
    store.requests.column("first_token_ns")             # by request id, -1: not yet
    store.table("requests"), store.header, store.marks  # what analyses take

Live, replay and compare are the same code: a store grows or does not, a player follows its end or
does not. All times are ns since the start of the run.
"""

from workbench.tui.store.player import SPEEDS, Player
from workbench.tui.store.run_store import RunStore

__all__ = ["SPEEDS", "Player", "RunStore"]
