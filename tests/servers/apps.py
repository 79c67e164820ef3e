"""The endpoints that the tests ask: they dispatch in every place of a request, and outside of one."""

import asyncio
import os
import threading
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import BackgroundTasks, Depends, FastAPI, Request, WebSocket
from fastapi.responses import JSONResponse, Response, StreamingResponse
from subscribers import HANDLING, gate, record

from fastapi_events import dispatch

TOKEN = os.environ["EVENTS_TOKEN"]


async def committed(key: str) -> AsyncIterator[None]:
    """A dependency with exit code, which runs when the response is out: where a session commits."""
    yield
    dispatch("gated", {"key": key})


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
    """Dispatch when the application opens and when it closes what handlers use."""
    dispatch("slow", {"key": "opening"})
    yield
    record("closing", "application")
    dispatch("slow", {"key": "closing"})


async def not_found(request: Request, _: Exception) -> Response:
    """Answer for a path that does not exist."""
    dispatch("gated", {"key": request.query_params["key"]})
    return JSONResponse({}, status_code=404)


def endpoints() -> FastAPI:
    """Build the application, without any middleware."""
    app = FastAPI(lifespan=lifespan, exception_handlers={404: not_found})

    @app.get("/ready")
    async def ready() -> dict[str, object]:
        return {"token": TOKEN, "pid": os.getpid()}

    @app.get("/normal")
    async def normal(key: str) -> dict[str, str]:
        dispatch("gated", {"key": key})
        return {"key": key}

    @app.get("/sync")
    def sync(key: str) -> dict[str, str]:
        dispatch("gated", {"key": key})
        return {"key": key}

    @app.get("/streaming")
    async def streaming(key: str) -> StreamingResponse:
        async def body() -> AsyncIterator[str]:
            yield "first "
            dispatch("gated", {"key": key})
            yield "last"

        return StreamingResponse(body())

    @app.get("/crash")
    async def crash(key: str) -> None:
        dispatch("gated", {"key": key})
        raise RuntimeError("the endpoint failed")

    @app.get("/background")
    async def background(key: str, tasks: BackgroundTasks) -> dict[str, str]:
        tasks.add_task(dispatch, "gated", {"key": key})
        return {"key": key}

    @app.get("/dependency")
    async def dependency(key: str, _: Annotated[None, Depends(committed)]) -> dict[str, str]:
        return {"key": key}

    @app.get("/in-request")
    async def in_request(event: str, key: str) -> dict[str, str]:
        dispatch(event, {"key": key})
        return {"key": key}

    @app.get("/slow")
    async def slow(key: str, seconds: float = HANDLING, then: str | None = None) -> dict[str, str]:
        dispatch("slow", {"key": key, "seconds": seconds, "then": then})
        return {"key": key}

    @app.get("/crash-slowly")
    async def crash_slowly(key: str) -> None:
        dispatch("slow", {"key": key})
        raise RuntimeError("the endpoint failed")

    @app.get("/outside")
    async def outside(event: str, key: str) -> dict[str, str]:
        threading.Thread(target=dispatch, args=(event, {"key": key})).start()
        return {"key": key}

    @app.get("/held")
    async def held(key: str) -> dict[str, str]:
        dispatch("gated", {"key": key})
        record("held", key)
        await gate(f"answer-{key}")
        record("answered", key)
        return {"key": key}

    @app.get("/endless")
    async def endless(key: str) -> StreamingResponse:
        async def body() -> AsyncIterator[str]:
            dispatch("gated", {"key": key})
            try:
                while True:
                    yield "more "
                    await asyncio.sleep(0.01)
            finally:
                record("left", key)

        return StreamingResponse(body())

    @app.websocket("/websocket")
    async def websocket(websocket: WebSocket, event: str, key: str) -> None:
        await websocket.accept()
        try:
            async for text in websocket.iter_text():
                dispatch(event, {"key": text})
                await websocket.send_text(text)
        finally:
            record("disconnected", key)
            dispatch("slow", {"key": key})

    return app
