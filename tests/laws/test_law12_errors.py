"""Law 12: an unknown key, file, prompt name or backbone is an error that names the nearest valid one."""

import pytest
from lawbook import drawn

from foreword.artifact import load_prompt, save_prompt
from foreword.backbone import load_backbone
from foreword.config import build
from foreword.data.examples import get_format
from foreword.errors import ForewordError
from foreword.generate.offline import generate
from foreword.prompts.soft_prompt import make_prompt
from foreword.prompts.spec import PromptSpec
from foreword.tasks import get_task
from foreword.train.run_config import RunConfig

PROMPT = PromptSpec(length=3)


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({"taks": "e2e"}, "unknown field 'taks'; did you mean 'task'"),
        ({"task": "e2e", "prompt": {"lenght": 4}}, "unknown field 'prompt.lenght'; did you mean 'length'"),
        ({"task": "e2e", "prompt": {"kind": "prefx"}}, "prompt.kind = 'prefx' is not a valid .* mean 'prefix'"),
        ({"task": "e2e", "prompt": {"init": {"name": "vocab"}}}, "did you mean 'vocabulary'"),
        ({"task": "e2e", "optim": {"name": "adamm"}}, "did you mean 'adamw'"),
        ({"task": "e2e", "backbone": {"dtype": "bf16"}}, "did you mean 'bfloat16'|valid: bfloat16"),
        ({"task": "e2e", "prompt": {"length": 0}}, "prompt.length = 0 must be at least 1"),
        ({"task": "e2e", "prompt": {"kind": "infix", "window": "always"}}, "prompt.window = 'always' is for"),
        ({"task": "e2e", "prompt": {"kind": "prompt", "layers": [1]}}, "are for kind 'prefix'"),
        ({"task": "e2e", "prompt": {"init": {"name": "words"}}}, "init.text is empty"),
    ],
)
def test_unknown_keys_and_values(tree, said):
    with pytest.raises(ForewordError, match=said) as caught:
        build(RunConfig, tree)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda b, d: get_task("e2f"), "did you mean 'e2e'"),
        (lambda b, d: get_format("papr"), "did you mean 'paper'"),
        (lambda b, d: load_prompt(d / "mi-prompt", b), "did you mean 'my-prompt'"),
        (lambda b, d: load_prompt(d, b), "did you mean .*my-prompt|has neither"),
        (lambda b, d: load_backbone(str(d / "nothing")), "is not a directory"),
        (lambda b, d: make_prompt(PromptSpec(stacks=("encoder",)), b), "names 'encoder'; the backbone lacks it"),
        (lambda b, d: make_prompt(PromptSpec(layers=(0, 7)), b), r"names \[7\], but the backbone's layers are 0 to 2"),
        (lambda b, d: make_prompt(PromptSpec(length=600), b), "leaves no room for text: the backbone has 512"),
        (lambda b, d: generate(b, ["a", "b"], [None]), "2 texts but 1 prompts"),
        (lambda b, d: generate(b, "text"), "pass a list of strings"),
        (lambda b, d: generate(b, ["a"], temperatur=2.0), "temperatur"),
        (lambda b, d: generate(b, ["a"], num_return_sequences=2, num_beams=2), "do not fit one text a row"),
        (lambda b, d: generate(b, ["a"], max_new_tokens=0), "max_new_tokens = 0 must be at least 1"),
        (lambda b, d: generate(b, ["abc", ""]), "text 1 has no token to start from"),
        (lambda b, d: generate(b, ["a" * 500], max_new_tokens=30), "take 530 positions, the backbone has 512"),
    ],
)
def test_unknown_names_and_impossible_requests(call, said, backbone_of, tmp_path):
    backbone = backbone_of("llama")
    save_prompt(drawn(backbone, PROMPT), tmp_path / "my-prompt", backbone)
    with pytest.raises(ForewordError, match=said) as caught:
        call(backbone, tmp_path)
    assert "\n" not in str(caught.value)


def test_a_prompt_of_another_backbone_is_an_error(backbone_of, tmp_path):
    """Wrong widths are seen at once; equal widths and other weights by the fingerprint that a saved prompt carries."""
    from backbones import make

    llama, mistral = backbone_of("llama"), backbone_of("mistral")
    fresh = drawn(backbone_of("qwen3"), PROMPT)
    with pytest.raises(ForewordError, match="does not fit backbone 'tests/llama'"):
        generate(llama, ["abc"], [fresh])
    saved = save_prompt(drawn(llama, PROMPT), tmp_path / "p", llama)
    for wrong in (mistral, make("llama", seed=1)):
        with pytest.raises(ForewordError, match=r"another backbone|does not fit"):
            generate(wrong, ["abc"], [load_prompt(saved)])
        with pytest.raises(ForewordError, match=r"another backbone|does not fit"):
            load_prompt(saved, wrong)


def test_a_text_too_long_for_learned_positions_is_an_error_on_an_encoder_too(backbone_of):
    with pytest.raises(ForewordError, match="take 600 positions, the backbone has 512"):
        generate(backbone_of("bart"), ["a" * 600])
