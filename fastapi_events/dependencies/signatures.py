"""What a callable asks for: its parameters, with annotations that may be out of reach, and how to call it."""

import builtins
import inspect
import sys
from collections.abc import Callable, Mapping
from functools import partial
from types import NoneType, UnionType
from typing import Annotated, Any, ForwardRef, NamedTuple, Union, get_args, get_origin

from pydantic.fields import FieldInfo

__all__ = ["Parameter", "Unknown", "kind_of", "label_of", "members_of", "parameters_of", "signature_of"]


def kind_of(call: Callable[..., Any]) -> tuple[bool, bool]:
    """Tell whether this is async, and whether a generator; looks through `__wrapped__`, as FastAPI does."""
    outer = _without_partial(call)
    faces = [outer, inspect.unwrap(outer)]
    if not inspect.isclass(faces[1]):
        faces += [method for face in faces for method in (face.__call__, inspect.unwrap(face.__call__))]
    if any(map(inspect.isasyncgenfunction, faces)):
        return True, True
    if any(map(inspect.isgeneratorfunction, faces)):
        return False, True
    return any(map(inspect.iscoroutinefunction, faces)), False


def label_of(call: object) -> str:
    """Return what people call this, on one line."""
    inner = _without_partial(call)
    return " ".join(str(getattr(inner, "__name__", type(inner).__name__)).split())


class Parameter(NamedTuple):
    """One parameter, its annotation taken apart."""

    name: str
    kind: Any  # this and the default are as `inspect` has them
    type: Any  # without what Annotated adds; Any where there is none, an Unknown where it is out of reach
    default: Any
    dependency: Any  # its Depends() or Security(), ours or FastAPI's, which both have a `dependency` and `use_cache`
    field: FieldInfo | None  # what makes a route read the request, such as Header()

    @property
    def keyword(self) -> str:
        """What comes before its value in a call."""
        return "" if self.kind is inspect.Parameter.POSITIONAL_ONLY else f"{self.name}="


def parameters_of(call: Callable[..., Any], known: Mapping[str, Any]) -> list[Parameter]:
    """Return the parameters of a callable; `*args` for one that tells none, as some builtins do.

    `known` has what its annotations may name besides what their module knows, which comes first.
    """
    try:
        signature = signature_of(call)
    except ValueError:
        signature = inspect.Signature([inspect.Parameter("args", inspect.Parameter.VAR_POSITIONAL)])
    names = _Names({**vars(builtins), **known, **_globals(call)})
    parameters: list[Parameter] = []
    for name, parameter in signature.parameters.items():
        type_, markers = _read(parameter.annotation, names)
        dependency = field = None
        for marker in (*markers, parameter.default):
            if isinstance(marker, (type, Unknown)):
                continue
            if hasattr(marker, "dependency") and hasattr(marker, "use_cache"):
                dependency = marker
            elif isinstance(marker, FieldInfo) and (label_of(marker) != "FieldInfo" or marker is parameter.default):
                field = marker  # a plain Field() in Annotated only describes
        parameters.append(Parameter(name, parameter.kind, type_, parameter.default, dependency, field))
    return parameters


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

    __getitem__: "Callable[..., Unknown]" = __call__
    __or__: "Callable[..., Unknown]" = __call__
    __ror__: "Callable[..., Unknown]" = __call__


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


def signature_of(call: Callable[..., Any]) -> inspect.Signature:
    """Return the signature of a callable, whatever its annotations name."""
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
