"""Other engines: vLLM for many machines, through exported prefix files, a KV connector and a gateway (docs/VLLM.md)."""
