"""`Depends()` in subscribers, read once, at registration.

subscriber.py    Depends(); a function becomes something that a delivery calls
graph.py         who needs what; what cannot work is refused
plan.py          the graph as one generated function
hops.py          what that function does in worker threads
signatures.py    what a callable asks for
"""

from fastapi_events.dependencies.subscriber import Compiled, Depends, compile_subscriber

__all__ = ["Compiled", "Depends", "compile_subscriber"]
