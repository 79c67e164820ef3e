"""What a callable asks for: its parameters, with annotations that may be out of reach, and how to call it."""

import builtins
import enum
import inspect
import sys
from collections.abc import Callable, Mapping
from functools import partial
from types import NoneType, UnionType
from typing import Annotated, Any, Final, ForwardRef, NamedTuple, Union, get_args, get_origin

from pydantic.fields import FieldInfo

__all__ = ["NO_DEFAULT", "Kind", "Parameter", "Unknown", "kind_of", "label_of", "members_of", "parameters_of"]

NO_DEFAULT: Final = inspect.Parameter.empty


class Kind(enum.Enum):
    """How something is called."""

    FUNCTION = enum.auto()
    GENERATOR = enum.auto()
    COROUTINE = enum.auto()
    ASYNC_GENERATOR = enum.auto()


_TESTS: Final = (
    (Kind.ASYNC_GENERATOR, inspect.isasyncgenfunction),
    (Kind.GENERATOR, inspect.isgeneratorfunction),
    (Kind.COROUTINE, inspect.iscoroutinefunction),
)


def kind_of(call: Callable[..., Any]) -> Kind:
    """Tell how to call this; decorators that keep `__wrapped__` are looked through, as FastAPI does."""
    outer = _without_partial(call)
    faces = [outer, inspect.unwrap(outer)]
    if not inspect.isclass(faces[1]):
        faces += [method for face in faces for method in (face.__call__, inspect.unwrap(face.__call__))]
    return next((kind for kind, test in _TESTS if any(map(test, faces))), Kind.FUNCTION)


def label_of(call: object) -> str:
    """Return what people call this, on one line."""
    inner = _without_partial(call)
    return " ".join(str(getattr(inner, "__name__", type(inner).__name__)).split())


class Parameter(NamedTuple):
    """One parameter, its annotation taken apart.

    Attributes:
        name: as written.
        kind: as `inspect` has it.
        type: without what `Annotated` adds; Any where there is none, an Unknown where it is out of reach.
        default: NO_DEFAULT where there is none.
        dependency: its `Depends()` or `Security()`, ours or FastAPI's, which both have a `dependency` and `use_cache`.
        field: what makes a route read the request, such as `Header()`.
    """

    name: str
    kind: Any
    type: Any
    default: Any
    dependency: Any
    field: FieldInfo | None

    @property
    def keyword(self) -> str | None:
        """The name, if it may be passed by name."""
        return None if self.kind is inspect.Parameter.POSITIONAL_ONLY else self.name


def parameters_of(call: Callable[..., Any], known: Mapping[str, Any]) -> list[Parameter]:
    """Return the parameters of a callable; `*args` for one that tells none, as some builtins do.

    `known` has what its annotations may name besides what their module knows, which comes first.
    """
    try:
        signature = _signature(call)
    except ValueError:
        signature = inspect.Signature([inspect.Parameter("args", inspect.Parameter.VAR_POSITIONAL)])
    names = _Names({**vars(builtins), **known, **_globals(call)})
    parameters: list[Parameter] = []
    for name, parameter in signature.parameters.items():
        type_, markers = _read(parameter.annotation, names)
        default = parameter.default
        dependency = field = None
        for marker in (*markers, default):
            if _is_dependency(marker):
                dependency = marker
            elif isinstance(marker, FieldInfo) and (label_of(marker) != "FieldInfo" or marker is default):
                field = marker  # a plain Field() in Annotated only describes
        parameters.append(Parameter(name, parameter.kind, type_, default, dependency, field))
    return parameters


def _is_dependency(marker: Any) -> bool:
    known = not isinstance(marker, (type, Unknown))
    return known and hasattr(marker, "dependency") and hasattr(marker, "use_cache")


def members_of(type_: Any) -> list[Any]:
    """Return the members of a union without None; of another type, itself."""
    if get_origin(type_) in (Union, UnionType):
        return [member for member in get_args(type_) if member is not NoneType]
    return [type_]


class Unknown:
    """Stands for what an annotation names and its module does not know: local, or imported for type checkers only."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __getattr__(self, name: str) -> "Unknown":
        if name.startswith("__"):
            raise AttributeError(name)
        return Unknown(f"{self.name}.{name}")

    def __call__(self, *_: object, **__: object) -> "Unknown":
        """Stand for the result as well."""
        return self

    def __getitem__(self, _: object) -> "Unknown":
        return self

    def __or__(self, _: object) -> "Unknown":
        return self

    def __ror__(self, _: object) -> "Unknown":
        return self


class _Names(dict[str, Any]):
    # an annotation such as Annotated[Session, Depends(get_session)] says enough where Session is unknown
    def __missing__(self, name: str) -> Unknown:
        return Unknown(name)


def _read(annotation: Any, names: _Names) -> tuple[Any, tuple[Any, ...]]:
    if annotation is inspect.Parameter.empty:
        return Any, ()
    if isinstance(annotation, ForwardRef):
        annotation = annotation.__forward_arg__
    try:
        if isinstance(annotation, str):
            return _read(eval(annotation, {}, names), names)
        if type(annotation).__name__ == "TypeAliasType":  # typing's and typing_extensions' are two
            return _read(annotation.__value__, names)
    except Exception:  # whatever an annotation does that was never meant to run
        return Unknown(str(annotation)), ()
    if get_origin(annotation) is Annotated:
        type_, markers = _read(annotation.__origin__, names)
        return type_, (*markers, *annotation.__metadata__)
    return annotation, ()


def _signature(call: Callable[..., Any]) -> inspect.Signature:
    if sys.version_info >= (3, 14):  # there annotations are evaluated when asked for, and may fail
        from annotationlib import Format

        return inspect.signature(call, annotation_format=Format.FORWARDREF)
    return inspect.signature(call)


def _globals(call: Callable[..., Any]) -> Mapping[str, Any]:
    inner = inspect.unwrap(_without_partial(call))
    if inspect.isclass(inner):
        found = getattr(inner.__init__, "__globals__", None) or vars(sys.modules.get(inner.__module__, builtins))
    else:
        found = getattr(inner, "__globals__", None) or getattr(inspect.unwrap(inner.__call__), "__globals__", {})
    return {**found, **{parameter.__name__: parameter for parameter in getattr(inner, "__type_params__", ())}}


def _without_partial(call: Any) -> Any:
    while isinstance(call, partial):
        call = call.func
    return call
