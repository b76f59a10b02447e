"""The KV connector: vLLM serves forewords from prefix files, another one for every request, unpatched.

vLLM has two halves of a connector in two processes. The scheduler's half says how many leading tokens of a request it
can load (P, or P less what vLLM's own cache holds already) and hands the workers a plan with each step. The workers'
half writes the prefix into the request's blocks with the attention backend's own function, so the layout of the paged
cache is no business of ours, and reports what failed. Written for vLLM 0.32, which calls this interface experimental.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
    KVConnectorTransferResults,
)
from vllm.distributed.parallel_state import get_tensor_model_parallel_rank, get_tensor_model_parallel_world_size
from vllm.logger import init_logger

from foreword.engines.prefix_files import LayerStates
from foreword.engines.prefix_memory import LayerPlace, PrefixMemory
from foreword.engines.prefix_plan import Load, Plan, Planner

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.forward_context import ForwardContext
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.request import Request

log = init_logger("vllm.foreword")
BUDGET_BYTES = 1 << 30


@dataclass
class PlanMetadata(KVConnectorMetadata):
    """A step's plan on its way from the scheduler to the workers."""

    plan: Plan = field(default_factory=Plan)


class ForewordConnector(KVConnectorBase_V1):
    """Prefixes as externally computed tokens.

    Settings in `kv_connector_extra_config`: `prefix_dir` (required), where the prefix files are, and `memory_bytes`,
    how much of them each worker keeps ready (1 GiB).
    """

    def __init__(self, vllm_config: "VllmConfig", role: KVConnectorRole, kv_cache_config: "KVCacheConfig") -> None:
        super().__init__(vllm_config=vllm_config, role=role, kv_cache_config=kv_cache_config)
        folder, budget_bytes = _settings(self._kv_transfer_config.kv_connector_extra_config)
        if self._kv_transfer_config.kv_load_failure_policy != "fail":
            raise ValueError("kv_load_failure_policy must be 'fail': 'recompute' would read placeholders as text")
        if len(kv_cache_config.kv_cache_groups) != 1:
            raise ValueError(f"the model has {len(kv_cache_config.kv_cache_groups)} groups of KV cache, prefixes are "
                             "for one; add --disable-hybrid-kv-cache-manager")
        self._block_size = vllm_config.cache_config.block_size
        self._planner = Planner(folder) if role is KVConnectorRole.SCHEDULER else None
        self._memory: PrefixMemory | None = None
        if role is KVConnectorRole.WORKER:
            rank, ranks = get_tensor_model_parallel_rank(), get_tensor_model_parallel_world_size()
            self._memory = PrefixMemory(folder, budget_bytes, rank, ranks)
        self._refused: set[str] = set()
        self._failed_blocks: set[int] = set()

    @property
    def requires_kv_delivery(self) -> bool:
        """Nothing is handed to another engine, whatever `kv_role` says."""
        return False

    # The scheduler's half: no exception may leave it.

    def get_num_new_matched_tokens(self, request: "Request", num_computed_tokens: int) -> tuple[int, bool]:
        """Return how many tokens after the first `num_computed_tokens` are loaded, and whether between two steps.

        A refused request is "loaded between two steps": no token of it ever runs, and only it can fail.
        """
        claim = self._planner.claim(request, num_computed_tokens)
        if claim.why_not is not None:
            log.warning("request %s refused: %s", request.request_id, claim.why_not)
            request.skip_reading_prefix_cache = False  # else vLLM drops the claim and runs the placeholders as text
        return claim.tokens, claim.why_not is not None

    def update_state_after_alloc(self, request: "Request", blocks: "KVCacheBlocks", num_external_tokens: int) -> None:
        """Note the blocks of a request; called again when it resumes after a preemption."""
        self._planner.allocated(request, blocks.get_block_ids()[0], num_external_tokens)

    def build_connector_meta(self, scheduler_output: "SchedulerOutput") -> KVConnectorMetadata:
        """Return the step's plan."""
        return PlanMetadata(self._planner.take())

    def request_finished(self, request: "Request", block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        """Forget a request; its blocks may be freed at once."""
        self._planner.forget(request.request_id)
        return False, None

    # The workers' half.

    @torch.inference_mode()
    def start_load_kv(self, forward_context: "ForwardContext", **kwargs: Any) -> None:
        """Write the prefixes of the step's requests into their blocks, before the step's forward pass."""
        metadata = self._get_connector_metadata()
        assert isinstance(metadata, PlanMetadata)
        self._refused.update(metadata.plan.refused)
        if not metadata.plan.loads:
            return
        layers = _attention_layers(forward_context)
        places = {number: _place(layer) for number, layer in layers.items()}
        ready: list[tuple[Load, dict[int, LayerStates]]] = []
        for load in metadata.plan.loads:
            try:
                ready.append((load, self._memory.get(load.digest, places)))
            except Exception as error:  # a damaged or vanished file ends the requests that want it, and no worker
                log.error("prefix %s cannot be loaded: %s: %s", load.digest, type(error).__name__, error)
                self._failed_blocks |= load.written_blocks(self._block_size)
        if ready:
            self._write(ready, layers)

    def get_transfer_results(self, finished_req_ids: set[str]) -> KVConnectorTransferResults:
        """Report the refused requests as failed."""
        refused, self._refused = self._refused, set()
        return KVConnectorTransferResults(finished_recving=refused, failed_recving=set(refused))

    def get_block_ids_with_load_errors(self) -> set[int]:
        """Report the blocks of prefixes that could not be loaded."""
        failed, self._failed_blocks = self._failed_blocks, set()
        return failed

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Do nothing: all layers are there before the forward pass."""

    def save_kv_layer(self, layer_name: str, kv_layer: torch.Tensor, attn_metadata: Any, **kwargs: Any) -> None:
        """Do nothing: prefix files are never written here."""

    def wait_for_save(self) -> None:
        """Do nothing, as nothing is saved."""

    def _write(self, ready: list[tuple[Load, dict[int, LayerStates]]], layers: Mapping[int, Any]) -> None:
        """Write all loads of a step, one call a layer."""
        slots = [slot for load, _ in ready for slot in load.slots(self._block_size)]
        mapping = torch.tensor(slots, dtype=torch.int64, device=next(iter(layers.values())).kv_cache.device)
        for number, layer in layers.items():
            keys = torch.cat([states[number][0][load.start : load.end] for load, states in ready])
            values = torch.cat([states[number][1][load.start : load.end] for load, states in ready])
            layer.impl.do_kv_cache_update(layer, keys, values, layer.kv_cache, mapping)


def _settings(given: Mapping[str, Any]) -> tuple[Path, int]:
    """Return the prefix directory and each worker's budget of bytes.

    Raises:
        ValueError: a setting is unknown, missing or wrong.
    """
    unknown = sorted(set(given) - {"prefix_dir", "memory_bytes"})
    if unknown:
        raise ValueError(f"kv_connector_extra_config has {unknown[0]!r}; it takes prefix_dir and memory_bytes")
    folder = Path(str(given.get("prefix_dir", ""))).expanduser()
    if not given.get("prefix_dir") or not folder.is_dir():
        raise ValueError(f"prefix_dir = {given.get('prefix_dir')!r} must be a directory of exported prefixes")
    budget_bytes = given.get("memory_bytes", BUDGET_BYTES)
    if type(budget_bytes) is not int or budget_bytes < 1:
        raise ValueError(f"memory_bytes = {budget_bytes!r} must be a whole number of at least 1")
    return folder, budget_bytes


def _attention_layers(forward_context: "ForwardContext") -> dict[int, Any]:
    """Return the layers with a KV cache by their number in the model, the first in a name as `model.layers.3.attn`."""
    found = {}
    for name, layer in forward_context.no_compile_layers.items():
        if hasattr(layer, "impl") and getattr(layer, "kv_cache", None) is not None:
            found[int(next(part for part in name.split(".") if part.isdigit()))] = layer
    return found


def _place(layer: Any) -> LayerPlace:
    return LayerPlace(layer.num_kv_heads, layer.head_size, layer.head_size_v, layer.kv_cache.device, layer.dtype)
