"""The trainable tables of a soft prompt: P rows of W numbers, trained directly or through Li & Liang's MLP."""

from typing import Literal

import torch
from torch import Tensor, nn

from foreword.shapes import Float


class DirectTable(nn.Module):
    """A plain [P, W] parameter."""

    def __init__(self, length: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(length, width))

    def forward(self) -> Float[Tensor, "P W"]:
        """Return the table."""
        return self.weight

    @torch.no_grad()
    def draw(self, generator: torch.Generator) -> None:
        """Fill the table with N(0, 0.02), a safe start wherever no initialisation is named."""
        self.weight.normal_(0, 0.02, generator=generator)

    @torch.no_grad()
    def set(self, values: Float[Tensor, "P W"], **_: object) -> float:
        """Copy `values` in; the error is 0."""
        self.weight.copy_(values)
        return 0.0


class MlpTable(nn.Module):
    """P' [P, E] -> Linear(E, width) -> tanh -> Linear(width, W): the reparametrisation of Li & Liang, section 4.3.

    As in their code, P' has the embedding width and the MLP's hidden layer is 512 or 800 wide (RECIPES 1.1).
    """

    def __init__(self, length: int, width: int, input_width: int, hidden_width: int) -> None:
        super().__init__()
        self.inputs = nn.Parameter(torch.empty(length, input_width))
        self.inner = nn.Linear(input_width, hidden_width)
        self.outer = nn.Linear(hidden_width, width)

    def forward(self) -> Float[Tensor, "P W"]:
        """Return the table that the MLP makes."""
        return self.outer(self.hidden())

    def hidden(self) -> Float[Tensor, "P M"]:
        """Return the tanh layer's output."""
        return torch.tanh(self.inner(self.inputs))

    @torch.no_grad()
    def draw(self, generator: torch.Generator) -> None:
        """Draw P' from N(0, 1) and the linear layers from PyTorch's default, as the original code does."""
        self.inputs.normal_(generator=generator)
        for layer in (self.inner, self.outer):
            bound = layer.in_features**-0.5
            layer.weight.uniform_(-bound, bound, generator=generator)
            layer.bias.uniform_(-bound, bound, generator=generator)

    def set(
        self,
        values: Float[Tensor, "P W"],
        fit: Literal["exact", "regression"] = "exact",
        steps: int = 500,
        learning_rate: float = 1e-4,
    ) -> float:
        """Make the MLP produce `values`; P' stays as drawn. Return the root mean square error.

        Args:
            values: the table to produce.
            fit: `exact` solves the last layer by least squares; `regression` runs `steps` of Adam on the MLP.
            steps: Adam steps (500 in the original code).
            learning_rate: Adam's learning rate (1e-4 in the original code).
        """
        if fit == "exact":
            self._solve(values)
        else:
            self._regress(values, steps, learning_rate)
        with torch.no_grad():
            return (self() - values).pow(2).mean().sqrt().item()

    @torch.no_grad()
    def _solve(self, values: Tensor) -> None:
        """Add to the last layer the smallest change (in norm) that makes it map the hidden rows onto `values`.

        P <= width + 1 rows are independent in general, so the fit is exact up to rounding.
        """
        hidden = self.hidden().double()
        hidden = torch.cat([hidden, torch.ones_like(hidden[:, :1])], 1)
        missing = values.double() - self().double()
        change = torch.linalg.lstsq(hidden.cpu(), missing.cpu(), driver="gelsd").solution.to(values.device)
        self.outer.weight.add_(change[:-1].T.to(self.outer.weight.dtype))
        self.outer.bias.add_(change[-1].to(self.outer.bias.dtype))

    def _regress(self, values: Tensor, steps: int, learning_rate: float) -> None:
        """The original code's `lowdata_init_train3`: Adam on the MLP's weights against the mean squared error."""
        parameters = [*self.inner.parameters(), *self.outer.parameters()]
        optimizer = torch.optim.Adam(parameters, lr=learning_rate)
        with torch.enable_grad():
            for _ in range(steps):
                optimizer.zero_grad()
                (self() - values.detach()).pow(2).mean().backward()
                optimizer.step()
        optimizer.zero_grad()
        self.inputs.grad = None
