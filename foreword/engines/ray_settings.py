"""What a Ray Serve deployment is told: all settings of a server or a gateway, and how many replicas there may be."""

from dataclasses import dataclass, field
from typing import Any

from foreword.engines.gateway import GatewayConfig
from foreword.errors import ConfigError
from foreword.serve.settings import ServeConfig

LEAVE_SEC = 10.0
"""What a replica gets beyond `drain_sec` to stop its engine before Ray kills it."""
REPORT_SEC = 10.0
OTHERS = 256
"""Requests that need no row (lists, uploads, health) and may be under way beside those that do."""


@dataclass(frozen=True)
class Fleet:
    """Replicas: how many, what each takes of its machine, and when there are to be more or fewer.

    Attributes:
        address: of the Ray cluster; `auto` for the one that was started on this machine, `local` to start one for the
            time of the command.
        app: name of the Serve application; two on one cluster need two names.
        min_replicas, max_replicas: bounds of autoscaling; equal bounds switch it off. With a minimum of 0 the first
            request after a quiet time waits until a backbone is loaded.
        initial_replicas: at the start; `min_replicas` by default.
        target_ongoing: requests for each replica that autoscaling aims at; three quarters of its rows by default.
        look_back_sec: over which the number of requests is averaged; above 10, as replicas tell it every 10 seconds.
        upscale_delay_sec, downscale_delay_sec: how long there must be too many, or too few, before replicas change.
        num_cpus, num_gpus: that Ray sets aside for each replica.
    """

    address: str = "local"
    app: str = "foreword"
    min_replicas: int = 1
    max_replicas: int = 4
    initial_replicas: int | None = None
    target_ongoing: float | None = None
    look_back_sec: float = 30.0
    upscale_delay_sec: float = 30.0
    downscale_delay_sec: float = 600.0
    num_cpus: float = 1.0
    num_gpus: float = 0.0

    def __post_init__(self) -> None:
        if self.min_replicas < 0:
            raise ConfigError(f"ray.min_replicas = {self.min_replicas} must be at least 0")
        if self.max_replicas < max(1, self.min_replicas):
            raise ConfigError(f"ray.max_replicas = {self.max_replicas} must be at least 1 and at least "
                              f"ray.min_replicas = {self.min_replicas}")
        first = self.initial_replicas
        if first is not None and not self.min_replicas <= first <= self.max_replicas:
            raise ConfigError(f"ray.initial_replicas = {first} must be {self.min_replicas} to {self.max_replicas}")
        if self.target_ongoing is not None and not self.target_ongoing > 0:
            raise ConfigError(f"ray.target_ongoing = {self.target_ongoing!r} must be above 0")
        if not self.look_back_sec > REPORT_SEC:
            raise ConfigError(f"ray.look_back_sec = {self.look_back_sec!r} must be above {REPORT_SEC:g}: replicas tell "
                              "their load that often")
        for name in ("upscale_delay_sec", "downscale_delay_sec", "num_cpus", "num_gpus"):
            if getattr(self, name) < 0:
                raise ConfigError(f"ray.{name} = {getattr(self, name)!r} must be at least 0")


@dataclass(frozen=True)
class RayServeConfig(ServeConfig):
    """`foreword serve` on Ray: every replica has the engine; `ray` says how many there are."""

    shared: bool = True
    ray: Fleet = field(default_factory=Fleet)


@dataclass(frozen=True)
class RayGatewayConfig(GatewayConfig):
    """`foreword gateway` on Ray: every replica asks the same vLLM servers; `ray` says how many there are."""

    shared: bool = True
    ray: Fleet = field(default_factory=Fleet)


RayConfig = RayServeConfig | RayGatewayConfig


def deployment_options(config: RayConfig) -> dict[str, Any]:
    """Return the options of the Serve deployment.

    A replica takes all that its own queue has room for, so that its scheduler decides whose turn it is, and what is
    over that is told so by its 429. In Ray's queue, which knows no tenants, next to nothing waits.
    """
    fleet, capacity = config.ray, config.capacity
    slots = capacity.rows * (len(config.vllm) if isinstance(config, RayGatewayConfig) else 1)
    scaling = {
        "min_replicas": fleet.min_replicas, "max_replicas": fleet.max_replicas,
        "initial_replicas": fleet.initial_replicas,
        "target_ongoing_requests": fleet.target_ongoing or max(1.0, 0.75 * slots),
        "look_back_period_s": fleet.look_back_sec, "upscale_delay_s": fleet.upscale_delay_sec,
        "downscale_delay_s": fleet.downscale_delay_sec,
    }
    return {
        "name": "Foreword", "autoscaling_config": scaling,
        "max_ongoing_requests": slots + capacity.queued + OTHERS,
        "ray_actor_options": {"num_cpus": fleet.num_cpus, "num_gpus": fleet.num_gpus},
        "logging_config": {"log_level": "WARNING", "enable_access_log": False},  # our log has a line a request
        "graceful_shutdown_wait_loop_s": 1.0, "graceful_shutdown_timeout_s": config.drain_sec + LEAVE_SEC,
    }
