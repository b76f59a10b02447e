"""Pretraining: corpus → tokenizer → packed tokens → objective → a backbone that a soft prompt can steer."""

from foreword.pretrain.job import PretrainConfig, pretrain

__all__ = ["PretrainConfig", "pretrain"]
