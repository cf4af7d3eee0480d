"""What published decoders are made of: ids that mean nothing by themselves, and a head that says the next one.

    B batch   T tokens   D width   V vocabulary
"""
import torch
from jaxtyping import Int
from torch import Tensor, nn

from sensorium.kernels import Linear
from sensorium.models import Decoder
from sensorium.tokens import CAUSAL, Tokens, line, unless_whole
from sensorium.transformer import Transformer

PAD = -1                                    # what follows a shorter text in a batch: no id of any vocabulary


class Ids(nn.Module):
    """Ids → Tokens, each seeing what came before; whatever is not PAD is read. `places`: 0, or how many are learned."""

    def __init__(self, vocab_size: int, dim: int, places: int = 0):
        super().__init__()
        self.ids = nn.Embedding(vocab_size, dim)
        self.places = nn.Parameter(torch.empty(places, dim)) if places else None
        nn.init.normal_(self.ids.weight, std=0.02)
        if self.places is not None:
            nn.init.normal_(self.places, std=0.02)

    def forward(self, ids: Int[Tensor, "B T"]) -> Tokens:
        real = ids != PAD
        x = self.ids(ids.clamp(min=0))
        x = x if self.places is None else x + self.places[:ids.shape[1]]
        return Tokens(x, line(x), CAUSAL, unless_whole(real))

    def head(self) -> Linear:
        """What says the next id by the ids' own vectors (tied weights)."""
        tied = head(self)
        tied.weight = self.ids.weight
        return tied

    def spelt(self, ids: Int[Tensor, "B T"]) -> Int[Tensor, "B T"]:
        return ids

    def at(self, ids: Int[Tensor, "B T"], places: Int[Tensor, "B T"]) -> Tokens:
        """Ids that stand at these places of their texts."""
        x = self.ids(ids) if self.places is None else self.ids(ids) + self.places[places]
        pos = x.new_zeros(*ids.shape, 3, dtype=torch.float32)
        pos[..., 0] = places
        return Tokens(x, pos, CAUSAL)


def writer(ids: Ids, trunk: Transformer, *, tied: bool = True) -> Decoder:
    """A decoder of text alone; `tied`: the head's weights are the ids' vectors."""
    return Decoder({"text": ids}, {"text": ids.head() if tied else head(ids)}, trunk)


def head(ids: Ids) -> Linear:
    """What says the next id, with weights of its own."""
    return Linear(ids.ids.embedding_dim, ids.ids.num_embeddings, bias=False)
