"""The shipped backbones are plain directories: Transformers and PEFT load them offline, without our code."""

import peft
import pytest
import torch
from peers import HARMLESS
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from foreword import bundled_backbones

pytestmark = [pytest.mark.filterwarnings(message) for message in HARMLESS]


def test_a_decoder_and_an_adapted_t5_are_shipped():
    configs = [AutoConfig.from_pretrained(path, local_files_only=True) for path in bundled_backbones().values()]
    assert {"llama", "t5"} <= {config.model_type for config in configs}


@pytest.mark.parametrize("name", bundled_backbones())
def test_transformers_and_peft_load_it_offline(name: str):
    path = bundled_backbones()[name]
    encoder_decoder = AutoConfig.from_pretrained(path, local_files_only=True).is_encoder_decoder
    kind = AutoModelForSeq2SeqLM if encoder_decoder else AutoModelForCausalLM
    model = kind.from_pretrained(path, local_files_only=True, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    batch = tokenizer("The river rises in the mountains of the north.", return_tensors="pt")
    with torch.no_grad():
        alone = model(**batch, labels=batch["input_ids"]).loss
    assert torch.isfinite(alone) and alone < 10  # a uniform guess has 9.7
    generated = model.generate(**batch, max_new_tokens=5, do_sample=False)
    assert generated.shape[1] > 1
    task = peft.TaskType.SEQ_2_SEQ_LM if encoder_decoder else peft.TaskType.CAUSAL_LM
    config = peft.PromptTuningConfig(task_type=task, num_virtual_tokens=4, num_transformer_submodules=1)
    wrapped = peft.get_peft_model(model, config)
    loss = wrapped(**batch, labels=batch["input_ids"]).loss
    loss.backward()
    learned = [parameter for parameter in wrapped.parameters() if parameter.requires_grad]
    width = model.get_input_embeddings().weight.shape[1]
    assert sum(p.numel() for p in learned) == 4 * width
    assert all(float(p.grad.abs().sum()) > 0 for p in learned)
