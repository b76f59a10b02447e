"""vLLM itself with the connector: every answer equals its own single run in Transformers, and faults stay alone."""

import random

import pytest
import vllm_kit as kit

kit.need_vllm()

from foreword.engines.export import export_vllm  # noqa: E402
from foreword.engines.prefix_files import file_name, salt_of  # noqa: E402


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def world(request, tmp_path_factory):
    """A backbone, its prompts, their exported files, and a running vLLM."""
    folder = tmp_path_factory.mktemp(request.param)
    backbone = kit.backbone_in(folder / "model", request.param)
    prompts = kit.prompts_for(backbone)
    files = export_vllm(kit.saved(prompts, backbone, folder / "store"), backbone, folder / "prefixes").files
    llm = kit.engine(backbone, folder / "prefixes")
    yield backbone, prompts, files, llm, folder / "prefixes"
    kit.stop(llm)


@pytest.mark.timeout(900)
def test_mixed_requests_equal_their_single_runs_cold_and_warm(world, measure, request):
    backbone, prompts, files, llm, _ = world
    cases = kit.cases_for(backbone, prompts, files, each=3, plain=12)
    assert len(files) >= 12 and {file.head.length for file in files.values()} >= {1, 200}
    family = request.node.callspec.params["world"]
    measure("vLLM cold, log p", family, kit.check(cases, kit.run(llm, cases)), kit.TOLERANCE)
    random.Random(1).shuffle(cases)
    measure("vLLM warm, log p", family, kit.check(cases, kit.run(llm, cases)), kit.TOLERANCE)


@pytest.mark.timeout(900)
def test_a_request_that_cannot_be_served_fails_alone(world):
    from vllm import SamplingParams

    backbone, prompts, files, llm, folder = world
    good = kit.cases_for(backbone, prompts, files, each=1, plain=4, seed=5)
    name = next(name for name, file in files.items() if file.head.length == 64)
    whole, text = files[name], list(range(10, 20))
    damaged = "d" * 64  # a sound head under a wrong name: only the worker, which reads it all, finds out
    (folder / file_name(damaged)).write_bytes((folder / whole.name).read_bytes())
    ids = [whole.head.placeholder] * 64 + text
    greedy, scored = SamplingParams(temperature=0, max_tokens=4), SamplingParams(max_tokens=4, prompt_logprobs=1)
    bad = {
        "unknown prefix": ({"prompt_token_ids": ids, "cache_salt": salt_of("0" * 64)}, greedy),
        "malformed salt": ({"prompt_token_ids": ids, "cache_salt": "pfx:../../etc/passwd"}, greedy),
        "text for placeholders": ({"prompt_token_ids": [7, *ids[1:]], "cache_salt": salt_of(whole.digest)}, greedy),
        "no text": ({"prompt_token_ids": ids[:64], "cache_salt": salt_of(whole.digest)}, greedy),
        "one token": ({"prompt_token_ids": [7], "cache_salt": salt_of(whole.digest)}, greedy),
        "damaged file": ({"prompt_token_ids": ids, "cache_salt": salt_of(damaged)}, greedy),
        "prompt_logprobs": ({"prompt_token_ids": ids, "cache_salt": salt_of(whole.digest)}, scored),
    }
    queue = [(case.wire(), SamplingParams(temperature=0, max_tokens=case.new), case) for case in good]
    queue += [(wire, settings, why) for why, (wire, settings) in bad.items() for _ in range(2)]
    random.Random(2).shuffle(queue)
    for _ in range(2):  # again, with a warm cache
        answers = llm.generate([q[0] for q in queue], [q[1] for q in queue], use_tqdm=False)
        for (_, _, what), answer in zip(queue, answers, strict=True):
            made = answer.outputs[0]
            if isinstance(what, str):
                assert (what, made.finish_reason, list(made.token_ids)) == (what, "error", [])
            else:
                assert list(made.token_ids) == what.tokens
    assert kit.check(good, kit.run(llm, good)) <= kit.TOLERANCE


@pytest.mark.timeout(900)
def test_a_prefix_exported_while_serving_is_served(world):
    backbone, _, _, llm, folder = world
    late = {"late": kit.drawn(backbone, kit.PromptSpec(length=40), 99)}
    files = export_vllm(kit.saved(late, backbone, folder.parent / "late"), backbone, folder).files
    cases = kit.cases_for(backbone, late, files, each=2, plain=0, seed=9)
    assert kit.check(cases, kit.run(llm, cases)) <= kit.TOLERANCE
