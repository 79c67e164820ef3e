"""Where 0.12 kept the base class of registries."""

from typing import TypeAlias

from fastapi_events.registry.payload_schema import EventPayloadSchemaRegistry

__all__ = ["BaseEventPayloadSchemaRegistry"]

BaseEventPayloadSchemaRegistry: TypeAlias = EventPayloadSchemaRegistry
