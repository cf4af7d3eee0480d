"""Recurrent networks over token sequences, in one direction or both.

B batch   T tokens   D width   E width of one direction
"""

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from sensorium.nn.tokens import Tokens, take_token, valid_mask

RNN_CELLS: dict[str, type[nn.GRU] | type[nn.LSTM]] = {"gru": nn.GRU, "lstm": nn.LSTM}


class Recurrent(nn.Module):
    """GRU (Cho et al. 2014) or LSTM (Hochreiter & Schmidhuber 1997) in place of a transformer.

    Padding tokens are skipped; their outputs are zero. A bidirectional network gives half of the
    width to each direction.

    Args:
        dim: Width of the tokens.
        depth: Number of layers.
        cell: `gru` or `lstm`.
        bidirectional: Whether sequences are read in both directions.
        dropout: Dropout between layers.

    Raises:
        ValueError: The cell is unknown, or the width of a bidirectional network is odd.
    """

    def __init__(
        self,
        dim: int,
        depth: int = 1,
        *,
        cell: str = "gru",
        bidirectional: bool = True,
        dropout: float = 0.0,
    ):
        super().__init__()
        if cell not in RNN_CELLS:
            raise ValueError(f"cell={cell!r} is unknown. Choose one of {', '.join(RNN_CELLS)}.")
        if bidirectional and dim % 2:
            raise ValueError(f"dim={dim} is odd. A bidirectional network needs an even width.")

        def layers() -> nn.ModuleList:
            return nn.ModuleList(
                RNN_CELLS[cell](dim, dim // 2 if bidirectional else dim, batch_first=True)
                for _ in range(depth)
            )

        self.forward_layers = layers()
        self.backward_layers = layers() if bidirectional else None
        self.dropout = nn.Dropout(dropout)

    def forward(self, t: Tokens, *, query_positions: Int[Tensor, "B"] | None = None) -> Tokens:
        """Transform all tokens, or return one of each sequence at `query_positions`.

        Raises:
            ValueError: The tokens have an order but the network is bidirectional.
        """
        if t.order is not None and self.backward_layers is not None:
            raise ValueError("Tokens have an order. Build the network with bidirectional=False.")
        if not t.x.shape[1]:
            return t
        valid = valid_mask(t)
        index = torch.arange(valid.shape[1], device=valid.device)
        valid_first = (index - (1 << 40) * valid).argsort(1)[..., None].expand_as(t.x)
        x = t.x if t.valid is None else t.x.gather(1, valid_first)
        x = self._run_layers(x, valid.sum(1))
        if t.valid is not None:
            x = torch.zeros_like(x).scatter(1, valid_first, x) * valid[..., None]
        output = replace(t, x=x)
        return output if query_positions is None else take_token(output, query_positions)

    def _run_layers(
        self, x: Float[Tensor, "B T D"], lengths: Int[Tensor, "B"]
    ) -> Float[Tensor, "B T D"]:
        """Run all layers; what follows the first `lengths` tokens does not affect their outputs."""
        reverse = reverse_indices(lengths, x.shape[1])[..., None]
        for i, forward_layer in enumerate(self.forward_layers):
            x = self.dropout(x) if i else x
            outputs = [_run_layer(forward_layer, x)]
            if self.backward_layers is not None:
                reversed_x = x.gather(1, reverse.expand_as(x))
                backward = _run_layer(self.backward_layers[i], reversed_x)
                outputs.append(backward.gather(1, reverse.expand_as(backward)))
            x = torch.cat(outputs, -1)
        return x


def _run_layer(layer: nn.Module, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T E"]:
    """Return a layer's output for each token.

    While exporting, the recurrence is written as a scan: PyTorch's own layer would fix the
    sequence length of the graph to that of the example.
    """
    if not torch.compiler.is_exporting():
        return layer(x)[0]
    from torch._higher_order_ops.scan import scan  # only needed for export

    weight = layer.get_parameter("weight_ih_l0")
    bias = layer.get_parameter("bias_ih_l0")
    inputs = F.linear(x, weight, bias).transpose(0, 1)
    if isinstance(layer, nn.GRU):
        state = x.new_zeros(x.shape[0], layer.hidden_size)
        _, outputs = scan(_gru_step(layer), state, inputs)
    elif isinstance(layer, nn.LSTM):
        state = x.new_zeros(x.shape[0], layer.hidden_size)
        _, outputs = scan(_lstm_step(layer), (state, state.clone()), inputs)
    else:
        raise TypeError(f"{type(layer).__name__} is no recurrent layer. Expected GRU or LSTM.")
    return outputs.transpose(0, 1)


def _gru_step(layer: nn.GRU) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return one step of a GRU: (state, projected input) → (state, output)."""
    weight = layer.get_parameter("weight_hh_l0")
    bias = layer.get_parameter("bias_hh_l0")

    def step(h: Tensor, projected: Tensor) -> tuple[Tensor, Tensor]:
        r, z, n = projected.chunk(3, 1)
        h_r, h_z, h_n = F.linear(h, weight, bias).chunk(3, 1)
        candidate = (n + (r + h_r).sigmoid() * h_n).tanh()
        h = candidate + (z + h_z).sigmoid() * (h - candidate)
        return h, h.clone()

    return step


def _lstm_step(
    layer: nn.LSTM,
) -> Callable[[tuple[Tensor, Tensor], Tensor], tuple[tuple[Tensor, Tensor], Tensor]]:
    """Return one step of an LSTM: (state, projected input) → (state, output)."""
    weight = layer.get_parameter("weight_hh_l0")
    bias = layer.get_parameter("bias_hh_l0")

    def step(
        state: tuple[Tensor, Tensor], projected: Tensor
    ) -> tuple[tuple[Tensor, Tensor], Tensor]:
        h, c = state
        i, f, g, o = (projected + F.linear(h, weight, bias)).chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        return (h, c), h.clone()

    return step


def reverse_indices(lengths: Int[Tensor, "B"], max_length: int) -> Int[Tensor, "B T"]:
    """Return indices that reverse the first `lengths` tokens and leave the others in place."""
    index = torch.arange(max_length, device=lengths.device)
    lengths = lengths[:, None]
    return torch.where(index < lengths, lengths - 1 - index, index)
