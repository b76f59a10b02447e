"""One Ray Serve replica: an engine (or a gateway), and the same HTTP application as `foreword serve` before it.

Ray's proxies take the connections and hand each request to a replica as ASGI, messages in and out, so streams,
clients that leave and every fault are dealt with by the same code. Ray imports this file; it imports nothing of Ray
before a replica is made.
"""

import re
from typing import Any

from foreword.engines.gateway import GatewayConfig, make_gateway
from foreword.engines.ray_settings import RayConfig
from foreword.serve.app import make_app
from foreword.serve.server import make_service, open_store
from foreword.serve.tracing import OpenTracer, Tracer
from foreword.serve.watch import Watch

REQUEST_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
REPLICA_HEADER = b"x-foreword-replica"


class Replica:
    """What Ray makes in each replica's process; `serve.ingress` wraps it."""

    def __init__(self, config: RayConfig) -> None:
        """Load the backbone and start the engine.

        Raises:
            ConfigError: others could come in without a key, or a vLLM server's address is none.
            BackboneError: the backbone cannot be loaded.
        """
        from ray import serve

        self._name = serve.get_replica_context().replica_id.unique_id
        store, keyring = open_store(config)
        make = make_gateway if isinstance(config, GatewayConfig) else make_service
        self._service = make(config, store, keyring)
        self._tracer: Tracer = OpenTracer() if config.otel else Tracer()
        self._watch = Watch(self._service, config.watch_sec)
        self._watch.start()
        self._service.log.info("replica ready", extra={"replica": self._name})

    def __serve_build_asgi_app__(self) -> "Labelled":
        """Return the application; when Ray has let the last request end, its end stops the engine."""
        return Labelled(make_app(self._service, self._tracer, self._close), self._name)

    def check_health(self) -> None:
        """Tell Ray that the engine lives; Ray replaces a replica whose engine has died.

        Raises:
            RuntimeError: it does not.
        """
        state = self._service.engine.stats().state
        if state not in ("running", "draining"):
            raise RuntimeError(f"the engine is {state}")

    def _close(self) -> None:
        self._watch.stop()
        self._service.engine.stop()
        self._service.pool.close()
        self._tracer.close()
        self._service.log.info("replica stopped", extra={"replica": self._name})


class Labelled:
    """An application whose answers name their replica, and have one request id: the one that Ray's proxy gave."""

    def __init__(self, app: Any, replica: str) -> None:
        self._app, self._label = app, (REPLICA_HEADER, replica.encode())

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one request; lifespan events pass through."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
        known = REQUEST_ID.fullmatch(given) is not None
        if known:  # the proxy adds it to the answer itself
            scope.setdefault("state", {})["request_id"] = given

        async def labelled(message: Any) -> None:
            if message["type"] == "http.response.start":
                kept = [pair for pair in message["headers"] if not (known and pair[0].lower() == b"x-request-id")]
                message = {**message, "headers": [*kept, self._label]}
            await send(message)

        await self._app(scope, receive, labelled)
