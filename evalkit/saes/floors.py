"""Coders that a claim must beat: same shape, same estimator, same certificate, same count.

Frozen random: decoder rows are random unit vectors and the encoder is their transpose. The transpose is
the stronger floor: an independent encoder's features would write in directions that have nothing to do
with what they read, and its ablations would move the model less. Each bias is drawn so that the audited
SAE's sparsity is kept (TopK: by construction; else one threshold, calibrated on the given stream).

Residual coordinates: the identity, one signed feature per coordinate of the stream. Random directions:
the same along a random orthonormal basis. Dense neurons: the MLP neurons of the block that writes the stream.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from evalkit.errors import SaeError
from evalkit.records import SaeCard, SaeQuality
from evalkit.saes.coder import Sae

_MAX_POSITIONS = 2048  # chosen: a sparsity known to 1 %, and under 100 MB of pre-activations
NOT_MEASURED = SaeQuality(
    explained_variance=None, l0=None, ce_recovered_zero=None, ce_recovered_mean=None, dead_share=None
)


def frozen_random(like: Sae, seed: int, stream: Float[Tensor, "pos d_model"]) -> Sae:
    """A random SAE of the audited one's width, sparsity, bias and normalisation.

    Args:
        like: The audited SAE.
        seed: Seed of the directions; the same seed gives the same SAE.
        stream: Decomposed raw activations at the hook; they set the centre and the threshold.

    Returns:
        `topk` with the same k if the audited SAE is `topk`; else `jumprelu` with one threshold at which
        the mean number of active features on `stream` equals the audited SAE's (at most about half of
        them: a random feature's sign is a coin toss).

    Raises:
        SaeError: `stream` is empty or has another width.
    """
    if stream.ndim != 2 or stream.shape[0] == 0 or stream.shape[1] != like.d_model:
        shape = tuple(stream.shape)
        raise SaeError(
            f"{like.hook}: stream has shape {shape}; a random SAE needs [positions, {like.d_model}]"
        )
    stream = stream[:: -(-stream.shape[0] // _MAX_POSITIONS)].float()
    generator = torch.Generator().manual_seed(seed)
    W_dec = F.normalize(torch.randn(like.d_sae, like.d_model, generator=generator), dim=-1)
    random = replace(
        like,
        architecture="topk",
        W_enc=W_dec.T,
        b_enc=torch.zeros(like.d_sae),
        W_dec=W_dec,
        b_dec=_centre(like, stream),
        k=like.k if like.architecture == "topk" else 1,
        threshold=None,
        gate=None,
        subtract_b_dec=True,
        card=_bare_card(like),
    )
    if like.architecture != "topk":
        n_active = sum(int(like.encode(part).count_nonzero()) for part in torch.split(stream, 512))
        threshold = _threshold(random, stream, n_active)
        random = replace(random, architecture="jumprelu", k=None, threshold=threshold)
    return replace(random, sha256=weights_sha256(random))


def residual_coordinates(like: Sae) -> Sae:
    """The identity coder at the audited SAE's hook: d_model signed features, decode(encode(x)) = x."""
    eye = torch.eye(like.d_model)
    coder = Sae(
        architecture="coordinates",
        hook=like.hook,
        W_enc=eye,
        b_enc=torch.zeros(like.d_model),
        W_dec=eye,
        b_dec=torch.zeros(like.d_model),
        card=_bare_card(like),
    )
    return replace(coder, sha256=weights_sha256(coder))


def random_directions(like: Sae, seed: int) -> Sae:
    """Signed coordinates along a random orthonormal basis: the identity coder, turned at random."""
    generator = torch.Generator().manual_seed(seed)
    basis, _ = torch.linalg.qr(torch.randn(like.d_model, like.d_model, generator=generator))
    coder = replace(residual_coordinates(like), W_enc=basis.contiguous(), W_dec=basis.T.contiguous())
    return replace(coder, sha256=weights_sha256(coder))


def dense_neurons(like: Sae, n_neurons: int) -> Sae:
    """The MLP neurons that write the audited SAE's stream: the identity at the hook `neurons.N`."""
    unit = torch.zeros(1).expand(n_neurons, n_neurons)  # a shape without memory: rows are never stored
    return Sae(
        architecture="neurons",
        hook=like.hook.replace("layers.", "neurons.", 1),
        W_enc=unit,
        b_enc=torch.zeros(n_neurons),
        W_dec=unit,
        b_dec=torch.zeros(n_neurons),
        card=_bare_card(like),
    )


def weights_sha256(sae: Sae) -> str:
    """Digest over the weights of a coder that has no file."""
    digest = hashlib.sha256(f"{sae.architecture} {sae.hook} {sae.k}".encode())
    for tensor in (sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec, sae.threshold):
        if tensor is not None:
            digest.update(tensor.detach().contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()


def _bare_card(like: Sae) -> SaeCard | None:
    """The limits of decomposition stay those of the audited SAE; its figures do not carry over."""
    if like.card is None:
        return None
    return like.card.model_copy(
        update={
            "quality": NOT_MEASURED,
            "random_floor": None,
            "seed_stability": None,
            "corpus": (),
            "training": {},
        }
    )


def _centre(like: Sae, stream: Tensor) -> Tensor:
    """Mean of the stream as the encoder reads it: the best constant, as a trained bias would be."""
    return like.normalised(stream).mean(0)


def _threshold(random: Sae, stream: Tensor, n_active: int) -> Float[Tensor, ""]:
    """The pre-activation exceeded `n_active` times over the stream, and never below zero."""
    pre = torch.cat([random.encode_pre(part).relu() for part in torch.split(stream, 512)]).reshape(-1)
    n_kept = min(max(n_active, 1), pre.numel() - 1)
    return pre.kthvalue(pre.numel() - n_kept).values
