"""Ray Serve: replicas of `foreword serve` or `foreword gateway` behind Ray's proxies, as many as the load asks for.

`foreword serve --ray ADDRESS` runs them until it is told to stop. On a cluster that is run by Serve config files,
`import_path: foreword.engines.ray_serve:app` deploys the same (docs/RAY_SERVE.md). Ray is imported inside functions.
"""

import contextlib
import dataclasses
import logging
import os
import re
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from foreword.config import build
from foreword.engines.ray_replica import Replica
from foreword.engines.ray_settings import RayConfig, RayGatewayConfig, RayServeConfig, deployment_options
from foreword.errors import ConfigError, ForewordError, MissingExtraError
from foreword.serve.logs import make_log
from foreword.serve.server import bind, check_open
from foreword.serve.tenants import Keyring

LOOK_SEC = 2.0
FAULT = re.compile(r"foreword\.errors\.\w+: (.+)")


class RayServeError(ForewordError):
    """Ray cannot be reached, or its Serve cannot run the deployment."""


def app(args: dict[str, Any]) -> Any:
    """Return the Serve application that a Serve config file's `args` ask for.

    Args:
        args: the fields of a server's configuration, with `ray` for the replicas; `vllm` makes it a gateway. `host`
            and `port` count for nothing here: Ray's proxies listen where Serve's `http_options` say.

    Raises:
        ConfigError: a field is unknown, missing or wrong, or the store has no keys and `open: true` is not said.
    """
    kind = RayGatewayConfig if "vllm" in args else RayServeConfig
    return application(build(kind, {"host": "0.0.0.0", **args}))  # where Ray listens is not known here: think the worst


def application(config: RayConfig) -> Any:
    """Return the Serve application of a configuration.

    Raises:
        ConfigError: others could come in without a key.
        MissingExtraError: Ray Serve is not installed.
    """
    _, serve = _ray_serve()
    check_open(config, Keyring(Path(config.store).expanduser()))
    return serve.deployment(serve.ingress()(Replica)).options(**deployment_options(config)).bind(config)


def serve_on_ray(config: RayConfig) -> int:
    """Serve on Ray until SIGTERM or SIGINT, let requests under way end, and return 0. Logs go to stderr as JSON lines.

    Raises:
        ConfigError: the port is taken, or others could come in without a key.
        MissingExtraError: Ray Serve is not installed.
        RayServeError: the cluster cannot be reached, or the replicas cannot start.
    """
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")  # Ray would drop lines of log that look like another replica's
    config = _absolute(config)
    made = application(config)
    log, fleet = make_log(), config.ray
    _, serve = _ray_serve()
    port = _free_port(config)
    with _cluster(config):
        if serve.status().proxies:
            log.warning("Serve runs on this cluster already; its own host and port count")
        serve.start(http_options={"host": config.host, "port": port})
        try:
            serve.run(made, name=fleet.app, route_prefix="/")
            log.info("listening", extra={"address": f"http://{config.host}:{port}", "app": fleet.app,
                                         "ray": dataclasses.asdict(fleet)})
            _until_signal(serve, fleet.app, log)
        except RuntimeError as error:  # Serve's word for replicas that do not start
            raise RayServeError(f"the replicas cannot start: {why_not(serve, fleet.app, error)}") from None
        finally:
            try:
                serve.delete(fleet.app)  # replicas finish what is under way, at most `drain_sec`
            except Exception as error:  # a cluster that is gone has nothing left to delete
                log.warning("not deleted", extra={"app": fleet.app, "fault": str(error)})
        log.info("stopped", extra={"app": fleet.app})
    return 0


def why_not(serve: Any, name: str, error: Exception) -> str:
    """Return why replicas did not start: the fault that ended the last of them, else what Serve says."""
    found = serve.status().applications.get(name)
    told = [str(error)]
    if found is not None:
        told += [found.message, *(deployment.message for deployment in found.deployments.values())]
    faults = FAULT.findall("\n".join(told))
    return faults[-1] if faults else " ".join(told)


@contextlib.contextmanager
def _cluster(config: RayConfig) -> Iterator[None]:
    """Be connected to the cluster; one that was started here ends here."""
    ray, serve = _ray_serve()
    address = config.ray.address
    given = None if address in ("", "local") else address
    started_here = not ray.is_initialized()
    if started_here:
        try:
            ray.init(given, include_dashboard=False if given is None else None, log_to_driver=True)
        except Exception as error:  # Ray raises bare ones, as when its processes start too slowly
            raise RayServeError(f"Ray cluster {address!r}: {error}; start one with `ray start --head`") from None
    try:
        yield
    finally:
        if started_here and given is None:
            serve.shutdown()
        if started_here:
            ray.shutdown()


def _until_signal(serve: Any, name: str, log: logging.Logger) -> None:
    """Wait for a signal; tell the log whenever the number of replicas changes.

    Raises:
        RayServeError: the application or the cluster is gone.
    """
    ended, told = threading.Event(), None
    before = {n: signal.signal(n, lambda *_: ended.set()) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        while not ended.is_set():
            try:
                found = serve.status().applications.get(name)
            except Exception as error:  # Ray's errors have no common base
                raise RayServeError(f"the Ray cluster is gone: {error}") from None
            if found is None:
                raise RayServeError(f"application {name!r} was deleted by somebody else")
            states = {state: count for d in found.deployments.values() for state, count in d.replica_states.items()}
            if states != told:
                told = states
                log.info("replicas", extra={"app": name, "status": found.status.value, "replicas": states})
            ended.wait(LOOK_SEC)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _absolute(config: RayConfig) -> RayConfig:
    """Return the configuration with whole paths: replicas run in directories of their own."""
    paths = {"store": str(Path(config.store).expanduser().resolve())}
    if Path(config.backbone).expanduser().is_dir():
        paths["backbone"] = str(Path(config.backbone).expanduser().resolve())
    if isinstance(config, RayGatewayConfig) and config.prefixes is not None:
        paths["prefixes"] = str(config.prefix_folder.resolve())
    return dataclasses.replace(config, **paths)


def _free_port(config: RayConfig) -> int:
    """Return the port that Ray's proxies are to have, looked for on this machine if the cluster is started here.

    Raises:
        ConfigError: it is taken, or it is 0 and the proxies are elsewhere.
    """
    if config.ray.address not in ("", "local"):
        if config.port == 0:
            raise ConfigError("port = 0 takes a free port of this machine, and Ray's proxies are elsewhere; give one")
        return config.port
    listener = bind(config)
    try:
        return listener.getsockname()[1]
    finally:
        listener.close()


def _ray_serve() -> tuple[Any, Any]:
    try:
        import ray
        from ray import serve
    except ImportError as error:
        text = f"serving on Ray needs Ray Serve ({error}): pip install 'foreword[ray-serve]'"
        raise MissingExtraError(text) from None
    return ray, serve
