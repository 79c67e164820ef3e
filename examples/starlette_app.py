"""The same bus in a Starlette application, without FastAPI: `uvicorn starlette_app:app --app-dir examples`."""

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from fastapi_events import Event, EventHandlerASGIMiddleware, LocalHandler, dispatch

handler = LocalHandler()


@handler.register("cat.*")
async def note(event: Event) -> None:
    print(f"note: {event.name} {event.payload}", flush=True)


async def adopt(request: Request) -> JSONResponse:
    name = request.path_params["name"]
    dispatch("cat.adopted", {"name": name})
    return JSONResponse({"adopted": name})


app = Starlette(
    routes=[Route("/adopt/{name}", adopt, methods=["POST"])],
    middleware=[Middleware(EventHandlerASGIMiddleware, handlers=[handler])],
)
