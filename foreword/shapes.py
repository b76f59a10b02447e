"""The axis alphabet, defined once, and the tensor types made from it.

    B rows of a batch          T text tokens              P virtual tokens (the soft prompt)
    S = P + T                  L layers                   H query heads
    K key/value heads          D head width               E model width
    V vocabulary               U distinct prompts in a batch
    G packed groups            N packed tokens (no padding)

Lengths come from a closed set: `prompt_len`, `text_len`, `cached_len`, `new_len`, `total_len`.
"""

from jaxtyping import Bool, Float, Int
from torch import Tensor

TokenIds = Int[Tensor, "B T"]
TokenMask = Int[Tensor, "B T"] | Bool[Tensor, "B T"]
Embeds = Float[Tensor, "B T E"]
Query = Float[Tensor, "B H T D"]
KeyValue = Float[Tensor, "B K T D"]
PrefixKeys = Float[Tensor, "K P D"]
BankKeys = Float[Tensor, "U K P D"]
AttentionMask = Bool[Tensor, "B 1 T S"] | Float[Tensor, "B 1 T S"]
Logits = Float[Tensor, "T V"]
SoftTokens = Float[Tensor, "P E"]

__all__ = [
    "AttentionMask",
    "BankKeys",
    "Bool",
    "Embeds",
    "Float",
    "Int",
    "KeyValue",
    "Logits",
    "PrefixKeys",
    "Query",
    "SoftTokens",
    "Tensor",
    "TokenIds",
    "TokenMask",
]
