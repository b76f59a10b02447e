"""Tiny random backbones of the ten families that the laws are checked on; built in memory, no files."""

from collections.abc import Callable

import torch
import transformers as tf
from tokenizers import Tokenizer, models, pre_tokenizers

from foreword.backbone import Backbone, wrap_backbone

VOCAB = 99
COMMON = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "vocab_size": VOCAB,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def tokenizer() -> tf.PreTrainedTokenizerFast:
    """Return a tokenizer with one token a letter or digit, and pad, bos, eos as ids 0, 1, 2."""
    special = ["<pad>", "<s>", "</s>", "<unk>"]
    letters = [chr(c) for c in range(33, 127)]
    vocab = {token: i for i, token in enumerate(special + letters + ["▁"])}
    core = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="never", split=False)
    from tokenizers import decoders

    core.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="never", split=False)
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def gpt2() -> tf.PreTrainedModel:
    return tf.GPT2LMHeadModel(
        tf.GPT2Config(
            n_embd=64, n_layer=3, n_head=4, vocab_size=VOCAB, n_positions=512, resid_pdrop=0.0, embd_pdrop=0.0,
            attn_pdrop=0.0, bos_token_id=1, eos_token_id=2, pad_token_id=0,
        )
    )


def llama() -> tf.PreTrainedModel:
    return tf.LlamaForCausalLM(tf.LlamaConfig(num_key_value_heads=2, **COMMON))


def mistral() -> tf.PreTrainedModel:
    return tf.MistralForCausalLM(tf.MistralConfig(num_key_value_heads=2, sliding_window=32, **COMMON))


def qwen3() -> tf.PreTrainedModel:
    return tf.Qwen3ForCausalLM(tf.Qwen3Config(num_key_value_heads=2, head_dim=24, **COMMON))


def gemma3() -> tf.PreTrainedModel:
    return tf.Gemma3ForCausalLM(
        tf.Gemma3TextConfig(
            num_key_value_heads=2, head_dim=24, sliding_window=32,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"], **COMMON
        )
    )


def opt() -> tf.PreTrainedModel:
    return tf.OPTForCausalLM(
        tf.OPTConfig(
            hidden_size=64, ffn_dim=96, num_hidden_layers=3, num_attention_heads=4, vocab_size=VOCAB,
            max_position_embeddings=512, word_embed_proj_dim=64, dropout=0.0, bos_token_id=1, eos_token_id=2,
            pad_token_id=0,
        )
    )


def pythia() -> tf.PreTrainedModel:
    return tf.GPTNeoXForCausalLM(tf.GPTNeoXConfig(**COMMON))


def phi3() -> tf.PreTrainedModel:
    return tf.Phi3ForCausalLM(tf.Phi3Config(num_key_value_heads=2, **COMMON))


def t5(d_kv: int = 24) -> tf.PreTrainedModel:
    return tf.T5ForConditionalGeneration(
        tf.T5Config(
            d_model=64, d_kv=d_kv, d_ff=96, num_layers=3, num_heads=4, vocab_size=VOCAB, decoder_start_token_id=0,
            dropout_rate=0.0, pad_token_id=0, eos_token_id=2, feed_forward_proj="gated-gelu",
        )
    )


def bart() -> tf.PreTrainedModel:
    return tf.BartForConditionalGeneration(
        tf.BartConfig(
            d_model=64, encoder_layers=3, decoder_layers=3, encoder_attention_heads=4, decoder_attention_heads=4,
            encoder_ffn_dim=96, decoder_ffn_dim=96, vocab_size=VOCAB, max_position_embeddings=512, dropout=0.0,
            bos_token_id=1, eos_token_id=2, pad_token_id=0, decoder_start_token_id=2, forced_eos_token_id=None,
        )
    )


DECODERS: dict[str, Callable[[], tf.PreTrainedModel]] = {
    "gpt2": gpt2, "llama": llama, "mistral": mistral, "qwen3": qwen3, "gemma3": gemma3, "opt": opt,
    "pythia": pythia, "phi3": phi3,
}
ENCODER_DECODERS: dict[str, Callable[[], tf.PreTrainedModel]] = {
    "t5": t5,
    "t5_square": lambda: t5(d_kv=16),  # d_kv * H = d_model, as in T5 v1.0
    "bart": bart,
}
FAMILIES = {**DECODERS, **ENCODER_DECODERS}
"""The ten families of the laws (T5 in two shapes): prefixes can enter all of them."""


def bloom() -> tf.PreTrainedModel:
    return tf.BloomForCausalLM(tf.BloomConfig(hidden_size=64, n_layer=2, n_head=4, vocab_size=VOCAB))


def gpt_neo() -> tf.PreTrainedModel:
    return tf.GPTNeoForCausalLM(
        tf.GPTNeoConfig(
            hidden_size=64, num_layers=2, num_heads=4, vocab_size=VOCAB, attention_types=[[["global", "local"], 1]],
            max_position_embeddings=128, window_size=16, bos_token_id=1, eos_token_id=2,
        )
    )


def mamba() -> tf.PreTrainedModel:
    return tf.MambaForCausalLM(tf.MambaConfig(hidden_size=64, num_hidden_layers=2, vocab_size=VOCAB, state_size=4))


OUTSIDERS: dict[str, Callable[[], tf.PreTrainedModel]] = {"bloom": bloom, "gpt_neo": gpt_neo, "mamba": mamba}
"""Models whose attention bypasses Transformers' interface: no prefix there, but input embeddings work."""


def make(name: str, seed: int = 0) -> Backbone:
    """Return a frozen random backbone; weights are scaled so that greedy choices have clear margins.

    T5 does not divide its scores by sqrt(D), so a large scale would only amplify rounding; BART's post-norm residual
    stream would repeat the start token (EOS) for ever at a small one.
    """
    torch.manual_seed(seed)
    model = {**FAMILIES, **OUTSIDERS}[name]()
    for path, parameter in model.named_parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(_scale(name, path))
    return wrap_backbone(model, tokenizer(), source=f"tests/{name}")


def _scale(name: str, path: str) -> float:
    if name.startswith("t5"):
        return 1.5
    return 8.0 if name == "bart" and "layers" in path else 3.0
