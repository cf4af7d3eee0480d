"""Recurrent networks: Tokens are read one after the other, forwards or both ways.

B batch   T tokens   D width
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from sensorium.nn.tokens import Tokens, take_token, valid_mask

RNN_CELLS: dict[str, type[nn.GRU] | type[nn.LSTM]] = {"gru": nn.GRU, "lstm": nn.LSTM}


class Recurrent(nn.Module):
    """Tokens → Tokens by GRU (Cho et al. 2014) or LSTM (Hochreiter & Schmidhuber 1997), in place of a transformer.

    Only valid tokens are read, as if the others were not there; what comes out for the others is zero. Both ways, half
    of the width is each way's, and there is no order to keep: ValueError for tokens that have one.
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
            raise ValueError(f"cell={cell!r} is not one of {', '.join(RNN_CELLS)}")
        if bidirectional and dim % 2:
            raise ValueError(f"both ways share the width: {dim} is no multiple of 2")

        def layers() -> nn.ModuleList:
            return nn.ModuleList(
                RNN_CELLS[cell](dim, dim // 2 if bidirectional else dim, batch_first=True)
                for _ in range(depth)
            )

        self.forward_layers, self.backward_layers = layers(), layers() if bidirectional else None
        self.dropout = nn.Dropout(dropout)

    def forward(self, t: Tokens, *, query_positions: Int[Tensor, "B"] | None = None) -> Tokens:
        """All tokens; with `only`, one a sequence."""
        if t.order is not None and self.backward_layers is not None:
            raise ValueError("tokens with an order are read forwards only: both=False")
        if not t.x.shape[1]:
            return t
        real = valid_mask(t)
        places = (torch.arange(real.shape[1], device=real.device) - (1 << 40) * real).argsort(
            1
        )  # the valid first
        places = places[..., None].expand_as(t.x)
        read = self._run_layers(t.x if t.valid is None else t.x.gather(1, places), real.sum(1))
        if t.valid is not None:
            read = torch.zeros_like(read).scatter(1, places, read) * real[..., None]
        said = replace(t, x=read)
        return said if query_positions is None else take_token(said, query_positions)

    def _run_layers(
        self, x: Float[Tensor, "B T D"], lengths: Int[Tensor, "B"]
    ) -> Float[Tensor, "B T D"]:
        """What is read of each sequence's first `lengths` tokens; the rest, read after them, changes nothing."""
        turned = reverse_indices(lengths, x.shape[1])[..., None]
        for i, forwards in enumerate(self.forward_layers):
            x = self.dropout(x) if i else x
            ways = [_run_layer(forwards, x)]
            if self.backward_layers is not None:
                back = _run_layer(self.backward_layers[i], x.gather(1, turned.expand_as(x)))
                ways.append(back.gather(1, turned.expand_as(back)))
            x = torch.cat(ways, -1)
        return x


def _run_layer(layer: nn.Module, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T E"]:
    """What a layer says at each token; in a graph step by step: PyTorch's own way is tied to its example's length."""
    assert isinstance(layer, nn.GRU | nn.LSTM)
    if not torch.compiler.is_exporting():
        return layer(x)[0]
    from torch._higher_order_ops.scan import scan  # not needed where no graph is made

    into, bias_in, weight, bias = (
        layer.get_parameter(f"{name}_l0")
        for name in ("weight_ih", "bias_ih", "weight_hh", "bias_hh")
    )
    given = F.linear(x, into, bias_in).transpose(0, 1)
    start = x.new_zeros(x.shape[0], layer.hidden_size)

    def gru(h: Tensor, now: Tensor) -> tuple[Tensor, Tensor]:
        (r, z, n), (from_r, from_z, from_n) = now.chunk(3, 1), F.linear(h, weight, bias).chunk(3, 1)
        new = (n + (r + from_r).sigmoid() * from_n).tanh()
        h = new + (z + from_z).sigmoid() * (h - new)
        return h, h.clone()

    def lstm(held: tuple[Tensor, Tensor], now: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
        i, f, g, o = (now + F.linear(held[0], weight, bias)).chunk(4, 1)
        c = f.sigmoid() * held[1] + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        return (h, c), h.clone()

    _, said = (
        scan(gru, start, given)
        if isinstance(layer, nn.GRU)
        else scan(lstm, (start, start.clone()), given)
    )
    return said.transpose(0, 1)


def reverse_indices(lengths: Int[Tensor, "B"], max_length: int) -> Int[Tensor, "B T"]:
    """Places of each sequence's tokens from its last to its first; what lies beyond its length stays where it is."""
    place, lengths = torch.arange(max_length, device=lengths.device), lengths[:, None]
    return torch.where(place < lengths, lengths - 1 - place, place)
