"""Quantizers beside vector-quantize-pytorch: the same codes, vectors, losses and codebooks."""

import pytest
import torch

from sensorium.nn.vector_quantize import FSQ, VQ

library = pytest.importorskip("vector_quantize_pytorch")


@pytest.mark.parametrize("levels", [[8, 8, 8], [7, 5, 5], [8, 5, 5, 5]])
def test_fsq_beside_vector_quantize_pytorch(levels: list[int]) -> None:
    peer = library.FSQ(levels)
    ours, z = (
        FSQ(levels),
        3 * torch.randn(2, 50, len(levels), generator=torch.Generator().manual_seed(0)),
    )
    x, ids = peer(z)
    torch.testing.assert_close(ours(z).x, x)
    assert torch.equal(ours.to_ids(z), ids.long())
    torch.testing.assert_close(ours.to_vectors(ids.long()), peer.indices_to_codes(ids))


def test_vq_beside_vector_quantize_pytorch() -> None:
    torch.manual_seed(0)
    z = torch.randn(2, 60, 6)
    peer = library.VectorQuantize(
        6, 12, decay=0.9, commitment_weight=0.25, eps=1e-9, threshold_ema_dead_code=0
    )
    ours = VQ(12, 6, decay=0.9, restart_dead_codes=False)
    ours.codebook.copy_(peer.codebook)
    ours.ema_counts.copy_(peer._codebook.cluster_size[0])
    for _ in range(3):
        x, ids, loss = peer.train()(z)
        found = ours(z)
        ours.after_step()
        assert torch.equal(found.ids, ids)
        torch.testing.assert_close(found.x, x)
        torch.testing.assert_close(found.loss, loss.sum())
        torch.testing.assert_close(ours.codebook, peer.codebook, rtol=1e-4, atol=1e-5)
