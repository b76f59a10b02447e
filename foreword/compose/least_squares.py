"""Linear maps by least squares: the training-free way from one space of vectors to another."""

from dataclasses import dataclass

import torch
from torch import Tensor

from foreword.shapes import Float


@dataclass(frozen=True, eq=False)
class LinearMap:
    """y = x W + b in float64.

    Attributes:
        weight: [W_source, W_target].
        bias: [W_target].
        error: root mean square of what the map leaves of its data, divided by the data's own root mean square.
    """

    weight: Float[Tensor, "S T"]
    bias: Float[Tensor, " T"]
    error: float

    def __call__(self, rows: Float[Tensor, "P S"]) -> Float[Tensor, "P T"]:
        """Return the mapped rows, float32."""
        return (rows.double().cpu() @ self.weight + self.bias).float()


@torch.no_grad()
def fit_linear(
    source: Float[Tensor, "N S"], target: Float[Tensor, "N T"], *, intercept: bool = False, ridge: float = 0.0
) -> LinearMap:
    """Return the map that takes `source` nearest to `target`: of all equally near ones the least in norm.

    Args:
        source: N vectors.
        target: what each should become.
        intercept: fit a bias too.
        ridge: penalty on the weights, as a share of the source's mean square (0: plain least squares).
    """
    x, y = source.double().cpu(), target.double().cpu()
    shift_x, shift_y = (x.mean(0), y.mean(0)) if intercept else (x.new_zeros(x.shape[1]), y.new_zeros(y.shape[1]))
    centred_x, centred_y = x - shift_x, y - shift_y
    if ridge:
        size = (ridge * len(x) * centred_x.square().mean()).sqrt()
        centred_x = torch.cat([centred_x, size * torch.eye(x.shape[1], dtype=x.dtype)])
        centred_y = torch.cat([centred_y, y.new_zeros(x.shape[1], y.shape[1])])
    weight = torch.linalg.lstsq(centred_x, centred_y, driver="gelsd").solution
    bias = shift_y - shift_x @ weight
    left = (x @ weight + bias - y).square().mean().sqrt()
    size = y.square().mean().sqrt()
    return LinearMap(weight, bias, float(left / size) if size > 0 else float(left))
