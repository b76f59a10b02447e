"""A cache too small for its requests: vLLM throws rows out and resumes them, prefixes and all."""

import pytest
import vllm_kit as kit

kit.need_vllm()

from foreword.engines.export import export_vllm  # noqa: E402


@pytest.mark.timeout(900)
def test_preempted_requests_equal_their_single_runs(tmp_path, measure):
    backbone = kit.backbone_in(tmp_path / "model", "llama")
    prompts = {name: prompt for name, prompt in kit.prompts_for(backbone).items() if prompt.length <= 65}
    files = export_vllm(kit.saved(prompts, backbone, tmp_path / "store"), backbone, tmp_path / "prefixes").files
    cases = kit.cases_for(backbone, prompts, files, each=2, plain=6, seed=3, new=80)
    llm = kit.engine(backbone, tmp_path / "prefixes", num_gpu_blocks_override=20, max_model_len=320)
    try:
        worst = kit.check(cases, kit.run(llm, cases))
        preempted = sum(m.value for m in llm.get_metrics() if m.name == "vllm:num_preemptions")
    finally:
        kit.stop(llm)
    assert preempted > 0, "nothing was preempted: make the cache smaller"
    measure(f"vLLM, {preempted:.0f} preemptions, log p", "llama", worst, kit.TOLERANCE)
