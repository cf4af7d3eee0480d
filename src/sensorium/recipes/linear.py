"""Linear models of wide features, fitted by L-BFGS: ridge and logistic regression.

N training rows   F features   K outputs
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from sensorium.models.blended_heads import LinearModel
from sensorium.models.wide_features import WideRows

L2_STRENGTHS = (100.0, 10.0, 1.0, 0.1, 0.01)  # penalties as in scikit-learn: 1 / C, or alpha
MAX_ITERATIONS = 30  # of L-BFGS, for each strength
HISTORY_SIZE = 10
PATIENCE = 2  # strengths without improvement before the search ends
MAX_PRODUCTS = 1 << 29  # products of an evaluation of the loss; more rows are not fitted on
RowLoss = Callable[[Tensor, Tensor], Tensor]


class LinearTrainer:
    """Fits a linear model with several strengths of the L2 penalty, strongest first.

    Each fit starts from the one before. The bias is not penalized.

    Args:
        x: Features of the training rows.
        y: Their targets.
        row_loss: The loss of each row from outputs and targets.
        prior: [K] Outputs of a model without features.
        num_features: F.
    """

    def __init__(
        self,
        x: WideRows,
        y: Tensor,
        row_loss: RowLoss,
        prior: Float[Tensor, "K"],
        num_features: int,
    ):
        self.x, self.y = limit_rows(x, y, len(prior))
        self.row_loss = row_loss
        self.transposed = self.x.sparse.transposed(num_features - x.dense.shape[1])
        self.weight = torch.zeros(num_features, len(prior))
        self.bias = prior.clone()

    def select_best(self, model: LinearModel, val_loss: Callable[[LinearModel], float]) -> float:
        """Fit with each strength, and leave the model with the lowest validation loss.

        Args:
            model: The model.
            val_loss: Returns its loss on the validation rows.

        Returns:
            The lowest validation loss.
        """
        best, best_loss, worse = (self.weight.clone(), self.bias.clone()), float("inf"), 0
        for strength in L2_STRENGTHS:
            self.fit(strength)
            model.load_buffers({"weight": self.weight.clone(), "bias": self.bias.clone()})
            loss = val_loss(model)
            if loss < best_loss:
                best, best_loss, worse = (self.weight.clone(), self.bias.clone()), loss, 0
            else:
                worse += 1
            if worse == PATIENCE:
                break
        model.load_buffers({"weight": best[0], "bias": best[1]})
        return best_loss

    def fit(self, strength: float) -> None:
        """Minimize the mean loss plus strength / 2N times the squared weights."""
        optimizer = torch.optim.LBFGS(
            [self.weight, self.bias],
            max_iter=MAX_ITERATIONS,
            history_size=HISTORY_SIZE,
            tolerance_grad=1e-6,
            tolerance_change=1e-8,
            line_search_fn="strong_wolfe",
        )

        def closure() -> float:
            return self._loss_and_gradient(strength / len(self.y))

        optimizer.step(closure)

    @torch.no_grad()
    def _loss_and_gradient(self, penalty: float) -> float:
        """Return the penalized loss, and set the gradients of the weights."""
        logits = self.x.matmul(self.weight) + self.bias
        with torch.enable_grad():
            leaf = logits.requires_grad_()
            loss = self.row_loss(leaf, self.y).mean()
            (gradient,) = torch.autograd.grad(loss, leaf)
        by_feature = [self.x.dense.T @ gradient, self.transposed.matmul(gradient)]
        self.weight.grad = torch.cat(by_feature) + penalty * self.weight
        self.bias.grad = gradient.sum(0)
        return loss.item() + penalty / 2 * self.weight.square().sum().item()


def limit_rows(x: WideRows, y: Tensor, num_outputs: int) -> tuple[WideRows, Tensor]:
    """Return evenly spaced rows if all of them cost more than MAX_PRODUCTS products."""
    num_products = (x.dense.numel() + len(x.sparse.index)) * num_outputs
    if num_products <= MAX_PRODUCTS:
        return x, y
    kept = torch.zeros(len(y), dtype=torch.bool)
    share = MAX_PRODUCTS / num_products
    kept[torch.linspace(0, len(y) - 1, max(1, int(len(y) * share))).round().long()] = True
    return x.take(kept), y[kept]


def squared_error(logits: Float[Tensor, "N K"], y: Float[Tensor, "N"]) -> Float[Tensor, "N"]:
    """Return half the squared error of standardized numbers; the first output is their mean."""
    return (logits[:, 0] - y).square() / 2
