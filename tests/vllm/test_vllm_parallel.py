"""Tensor parallelism: two ranks, each with its heads of every prefix; one key/value head for two ranks as well."""

import pytest
import vllm_kit as kit

kit.need_vllm()

from foreword.engines.export import export_vllm  # noqa: E402


@pytest.mark.timeout(2400)
@pytest.mark.parametrize("family", ["llama", "llama_one_head"])
def test_two_ranks_equal_single_runs(tmp_path, measure, family):
    from vllm import SamplingParams

    backbone = kit.backbone_in(tmp_path / "model", family)
    prompts = {name: prompt for name, prompt in kit.prompts_for(backbone).items() if prompt.length in (1, 21, 33, 128)}
    files = export_vllm(kit.saved(prompts, backbone, tmp_path / "store"), backbone, tmp_path / "prefixes").files
    cases = kit.cases_for(backbone, prompts, files, each=2, plain=3, seed=4)
    llm = kit.engine(backbone, tmp_path / "prefixes", tensor_parallel_size=2)
    try:
        measure("vLLM on two ranks, log p", family, kit.check(cases, kit.run(llm, cases)), kit.TOLERANCE)
        unknown = {"prompt_token_ids": [0] * 9, "cache_salt": kit.salt_of("0" * 64)}
        (failed,) = llm.generate([unknown], SamplingParams(max_tokens=4), use_tqdm=False)
        assert failed.outputs[0].finish_reason == "error"
        assert kit.check(cases, kit.run(llm, cases)) <= kit.TOLERANCE
    finally:
        kit.stop(llm)
