"""The decoders in the package: vLLM loads them offline and answers as Transformers does, with a prefix and without."""

import pytest
import vllm_kit as kit

kit.need_vllm()

from foreword.backbone import bundled_backbones, load_backbone  # noqa: E402
from foreword.engines.export import export_vllm  # noqa: E402
from foreword.prompts.spec import PromptSpec  # noqa: E402


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", [name for name in bundled_backbones() if "decoder" in name])
def test_a_shipped_decoder_answers_as_in_transformers(name, tmp_path, measure):
    # By its directory: vLLM knows no bundled names.
    backbone = load_backbone(str(bundled_backbones()[name]), dtype="float32")
    prompts = {f"prefix-{length}": kit.drawn(backbone, PromptSpec(length=length), seed=length) for length in (10, 64)}
    files = export_vllm(kit.saved(prompts, backbone, tmp_path / "store"), backbone, tmp_path / "prefixes").files
    llm = kit.engine(backbone, tmp_path / "prefixes")
    try:
        cases = kit.cases_for(backbone, prompts, files, each=4, plain=8)
        measure("vLLM shipped, log p", name, kit.check(cases, kit.run(llm, cases)), kit.TOLERANCE)
    finally:
        kit.stop(llm)
