"""Forwards events to an AWS SQS queue; needs the extra `aws` (boto3)."""

# boto3 and botocore ship no types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownArgumentType=false
# pyright: reportUnknownVariableType=false

import asyncio
import inspect
import logging
import os
import threading
import time
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, Final, Protocol, cast

import boto3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError as BotoConnectionError,
    CredentialRetrievalError,
    HTTPClientError,
)

from fastapi_events.errors import ConfigurationError, ForwardError, Rejection
from fastapi_events.event import Event
from fastapi_events.handlers._sqs_batches import Answers, Policy, Refusal
from fastapi_events.handlers._sqs_connection import Connection
from fastapi_events.handlers._sqs_message import GroupId, MessageFormat, Refused
from fastapi_events.handlers.base import BaseEventHandler, as_event
from fastapi_events.typing import Serializer

__all__ = ["SQSClient", "SQSForwardHandler"]

logger: logging.Logger = logging.getLogger("fastapi_events")

MAX_BATCH_SIZE: Final = 10  # messages that SQS takes in a call
MAX_MESSAGE_BYTES: Final = 1_048_576  # that SQS takes in a message, unless the queue is set lower
CONNECT_TIMEOUT: Final = 3  # seconds; boto3's own default is 60
READ_TIMEOUT: Final = 10  # seconds; boto3's own default is 60
SLICE: Final = 0.005  # seconds of work after which the event loop gets its turn

# Codes that ask for another attempt, beside those that contain "Throttl" and the statuses 429 and 5xx.
_TRANSIENT_CODES: Final = frozenset(
    {"PriorRequestNotComplete", "RequestLimitExceeded", "RequestTimeout", "RequestTimeoutException", "SlowDown"}
)
# Parts of codes about permissions, the queue or its key: of the others, one message of a call may be the cause.
_LASTING_FOR_ALL: Final = ("AccessDenied", "NonExistentQueue", "QueueDoesNotExist", "Kms", "KMS")
_NO_ANSWER: Final = Refusal("the answer of SQS does not mention it", again=True)

_making_client = threading.Lock()  # boto3's default session makes one client at a time


class SQSClient(Protocol):
    """What the handler needs of `boto3.client("sqs")`."""

    def send_message_batch(self, *, QueueUrl: str, Entries: Sequence[Any]) -> Any:  # noqa: N803
        """Send up to ten messages."""

    def get_queue_attributes(self, *, QueueUrl: str, AttributeNames: Sequence[Any]) -> Any:  # noqa: N803
        """Ask for the size limit of the queue."""

    def close(self) -> None:
        """Close the sockets; called on a given client only in a fork, which must not use its parent's."""


class SQSForwardHandler(BaseEventHandler):
    """Sends events to an SQS queue: in full calls, from threads of its own, and loses none silently.

    Events of all requests share calls of up to ten. An event that SQS refuses for good, or that could not be sent
    in time, is in the `rejected` of the ForwardError that `handle_many` raises; a bus gives each to `on_error` and
    `dead_letters`. Every other one arrived, at least once.

    On a FIFO queue (`.fifo`) an event's id is its deduplication id, and the order within a message group is kept.

    Args:
        queue_url: of the queue, as `aws sqs get-queue-url` prints it.
        region_name: None for what boto3 finds (`AWS_DEFAULT_REGION`, the profile).
        serializer: writes the body; None for the CloudEvent. Called on the event loop.
        max_batch_size: messages in a call, 1 to 10.
        message_group_id: the message group, or a function that tells it from the event. On a FIFO queue, without
            one or where it returns None, it is the header `partitionkey`, else the name of the event.
        client: a boto3 SQS client, used in place of a new one and left open.
        attributes: headers that become message attributes, beside `traceparent`; `contentType` and `type` always
            are. A message can have ten.
        linger: seconds that an event waits for its call to fill; a full call goes at once.
        retry_for: seconds from an event's first call until it is given up: less than the bus's `drain_timeout`.
        threads: calls at once, at least 1. More than four stall the event loop rather than send more.
        boto_client_kwargs: what else `boto3.client` takes, such as `endpoint_url=` and `config=`.

    Raises:
        ConfigurationError: an argument that cannot work.
    """

    def __init__(
        self,
        queue_url: str,
        region_name: str | None = None,
        *,
        serializer: Serializer | None = None,
        max_batch_size: int = MAX_BATCH_SIZE,
        message_group_id: GroupId = None,
        client: SQSClient | None = None,
        attributes: Sequence[str] = (),
        linger: float = 0.02,
        retry_for: float = 15.0,
        threads: int = 4,
        **boto_client_kwargs: Any,
    ) -> None:
        if hasattr(self, "format_message"):
            raise ConfigurationError(
                "format_message() of 0.12 is never called: pass serializer=, which writes the body"
            )
        if "://" not in queue_url:
            raise ConfigurationError(f"{queue_url!r} is no queue URL: pass what `aws sqs get-queue-url` prints")
        if not 1 <= max_batch_size <= MAX_BATCH_SIZE:
            raise ConfigurationError(f"max_batch_size={max_batch_size}: a call takes 1 to {MAX_BATCH_SIZE} messages")
        if threads < 1 or not 0 <= linger < retry_for:
            raise ConfigurationError(
                f"threads={threads}, linger={linger}, retry_for={retry_for}: use at least one thread, "
                "and linger for less time than you retry"
            )
        if client is not None and (region_name is not None or boto_client_kwargs):
            raise ConfigurationError("client= has its region and options already: give those to boto3.client")
        options = {"region_name": region_name, **boto_client_kwargs}
        try:
            inspect.signature(boto3.Session.client).bind(None, "sqs", **options)
        except TypeError as error:
            raise ConfigurationError(f"neither SQSForwardHandler nor boto3.client takes this: {error}") from error
        fifo = queue_url.endswith(".fifo")
        self._policy = Policy(max_batch_size, threads, linger, retry_for, ordered=fifo)
        self._format = MessageFormat(serializer=serializer, group_id=message_group_id, attributes=attributes, fifo=fifo)
        self._open_queue = partial(_open_queue, queue_url, client, os.getpid(), options, threads)
        self._connection: Connection | None = None
        self._lock = threading.Lock()  # event loops of several threads may need the first connection at once

    async def start(self) -> None:
        """Make the client and ask how large a message may be, in a thread.

        Raises:
            ConfigurationError: boto3 cannot make a client; it says why.
        """
        await self._connect()

    async def stop(self) -> None:
        """Send what still waits on this event loop, then end the threads and close the client.

        A call that hangs is not waited for when nobody waits for its events any more.
        """
        with self._lock:
            connection, self._connection = self._connection, None
        if connection is not None and connection.usable:
            await connection.finish()

    async def handle(self, event: Event[object] | Any) -> None:  # Any: 0.12 passed pairs
        """Send one event, in one call with others that come within the linger time.

        Raises:
            ForwardError: it did not arrive.
        """
        await self.handle_many([event])

    async def handle_many(self, events: Iterable[Event[object] | Any]) -> None:
        """Send events, and return when all have arrived.

        If the caller is cancelled, what is not in a call yet is not sent; a call that is being made goes on.

        Raises:
            ForwardError: some did not arrive; `rejected` has them, each with its reason.
        """
        connection = await self._connect()
        batches = connection.batches()
        max_bytes = connection.opened.result().max_message_bytes
        clock = time.monotonic
        slice_end = clock() + SLICE
        count = 0
        delivery = batches.deliver()
        try:
            for event in map(as_event, events):
                count += 1
                try:
                    batches.add(event, self._format.message(event, max_bytes), delivery)
                except Refused as refused:
                    delivery.rejected.append(Rejection(event, str(refused)))
                if clock() > slice_end:
                    await asyncio.sleep(0)
                    slice_end = clock() + SLICE
            delivery.end()
            await delivery.done
        except BaseException:
            delivery.withdrawn = True
            raise
        finally:
            batches.deliveries.discard(delivery)
        if delivery.rejected:
            raise ForwardError(
                f"{len(delivery.rejected)} of {count} events did not reach the queue: see .rejected for each; "
                f"the first: {delivery.rejected[0].reason}",
                delivery.rejected,
            )

    async def _connect(self) -> Connection:
        with self._lock:
            connection = self._connection
            if connection is None or not connection.usable:
                connection = self._connection = Connection(self._open_queue, self._policy, self)
        if not connection.opened.done():
            await asyncio.wrap_future(connection.opened)
        return connection


def _open_queue(
    url: str, given_client: SQSClient | None, given_in: int, options: dict[str, Any], connections: int
) -> "_Queue":
    client = _make_client(options, connections) if given_client is None else given_client
    if given_client is not None and given_in != os.getpid():
        given_client.close()  # a fork: these sockets are the parent's too, and the client makes new ones
    max_message_bytes = MAX_MESSAGE_BYTES
    try:
        answer = client.get_queue_attributes(QueueUrl=url, AttributeNames=["MaximumMessageSize"])
        max_message_bytes = int(answer["Attributes"]["MaximumMessageSize"])
    except Exception as error:  # whatever it is, SQS checks messages itself too
        logger.warning(
            "%s does not tell how large a message may be, so %d bytes are assumed: "
            "check the URL, and allow sqs:GetQueueAttributes (%r)",
            url,
            max_message_bytes,
            error,
        )
    return _Queue(url, client, max_message_bytes, keep_client=given_client is not None)


def _make_client(options: dict[str, Any], connections: int) -> SQSClient:
    config = Config(
        connect_timeout=CONNECT_TIMEOUT,
        read_timeout=READ_TIMEOUT,
        max_pool_connections=connections,
        retries={"total_max_attempts": 1, "mode": "standard"},  # further attempts are ours: they hold no thread
        # These two are each a tenth of a call's CPU time: MessageFormat validates already, and botocore composes
        # its own user agent anew for every request.
        parameter_validation=False,
        user_agent=f"Boto3/{boto3.__version__} fastapi_events",
    )
    try:
        given = options.get("config")
        with _making_client:
            client = boto3.client("sqs", **{**options, "config": config.merge(given) if given else config})
    except (BotoCoreError, TypeError, ValueError) as error:
        raise ConfigurationError(
            f"boto3 cannot make an SQS client: {error} Pass region_name= or boto3's own options, or set "
            "AWS_DEFAULT_REGION"
        ) from error
    return cast("SQSClient", client)


class _Queue:
    """An open queue."""

    def __init__(self, url: str, client: SQSClient, max_message_bytes: int, *, keep_client: bool) -> None:
        self.max_message_bytes = max_message_bytes
        self._url = url
        self._client = client
        self._keep_client = keep_client

    def send(self, entries: Sequence[dict[str, Any]]) -> Answers:
        try:
            answer = self._client.send_message_batch(QueueUrl=self._url, Entries=entries)
            answers: dict[str, Refusal | None] = {arrived["Id"]: None for arrived in answer.get("Successful", ())}
            for failed in answer.get("Failed", ()):
                reason = f"{failed['Code']}: {failed.get('Message', '')}"
                answers[failed["Id"]] = Refusal(reason, again=not failed["SenderFault"])
        except Exception as error:
            return [_refusal(error)] * len(entries)
        return [answers.get(entry["Id"], _NO_ANSWER) for entry in entries]

    def close(self) -> None:
        if not self._keep_client:
            self._client.close()


def _refusal(error: Exception) -> Refusal:
    """Tell what the failure of a whole call means for each of its messages."""
    if not isinstance(error, ClientError):
        again = isinstance(error, (BotoConnectionError, HTTPClientError, CredentialRetrievalError))
        return Refusal(f"{type(error).__name__}: {error}", again)
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    details = error.response.get("Error", {})
    code = details.get("Code", "")
    again = status >= 500 or status == 429 or "Throttl" in code or code in _TRANSIENT_CODES
    alone = not again and status != 403 and not any(part in code for part in _LASTING_FOR_ALL)
    return Refusal(f"{code}: {details.get('Message', '')}", again, alone)
