"""vLLM's entry point `vllm.general_plugins`: every process of vLLM calls this and then knows the connector by name."""

CONNECTOR = "ForewordConnector"
MODULE = "foreword.engines.vllm_connector"


def register() -> None:
    """Make `--kv-transfer-config '{"kv_connector": "ForewordConnector", ...}'` work; nothing of vLLM is changed.

    Calling it again does nothing: vLLM loads plugins several times in one process.
    """
    from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory

    if CONNECTOR not in KVConnectorFactory._registry:
        KVConnectorFactory.register_connector(CONNECTOR, MODULE, CONNECTOR)
