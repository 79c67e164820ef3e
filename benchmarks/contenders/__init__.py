"""Those who take part, each in a module of its own with three names.

`SEMANTICS`: in a few words, what differs from this library. `CAN`: whether it can do a case at all.
`opened(case, calls)`: an async context manager that gives the app of a "request" or "memory" case, or the function
of a "call" case.
"""

from dataclasses import dataclass

__all__ = ["CONTENDERS", "Contender"]


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One who takes part.

    Attributes:
        title: as in the tables.
        environment: the virtual environment that has it: "old" has fastapi-events 0.12.2, which has our import name.
        package: whose version is told.
    """

    title: str
    package: str | None = None
    environment: str = "peers"


CONTENDERS = {
    "limit": Contender(title="hand-written limit"),
    "ours": Contender(title="fastapi_events"),
    "old": Contender(title="fastapi-events 0.12.2", package="fastapi-events", environment="old"),
    "background": Contender(title="BackgroundTasks", package="starlette"),
    "blinker": Contender(title="blinker", package="blinker"),
    "pyee": Contender(title="pyee", package="pyee"),
    "psygnal": Contender(title="psygnal", package="psygnal"),
    "litestar": Contender(title="litestar's emitter", package="litestar"),
    "django": Contender(title="Django signals", package="Django"),
    "bubus": Contender(title="bubus", package="bubus"),
    "cloudevents": Contender(title="cloudevents", package="cloudevents"),
}
