"""The bidirectional encoder.

Letters: b batch, n sequence, e embedding, h query heads, h_kv key/value heads, d head dimension.
"""

from __future__ import annotations

from torch import Tensor

from ..core.validation import check_dense
from .blocks import Attend, LongNetStack, check_tokens


class LongNetEncoder(LongNetStack):
    """Bidirectional encoder over token ids or embeddings.

    Args:
        config: its shape; ``vocab_size=None`` for embeddings alone.
    """

    is_causal = False

    def forward(
        self,
        inputs: Tensor,
        key_padding_mask: Tensor | None = None,
        positions: Tensor | None = None,
        attend: Attend | None = None,
    ) -> Tensor:
        """Encode.

        With ``key_padding_mask`` each row gets what its tokens get alone, wherever the padding is. The
        states of ignored tokens mean nothing, and nothing that their inputs hold reaches a result.

        Args:
            inputs: token ids int64 ``[b, n]``, or embeddings ``[b, n, e]``.
            key_padding_mask: ``[b, n]``, tokens to ignore, as for :func:`dilated_attention`; not with
                ``attend``.
            positions: int64 ``[n]`` or ``[b, n]``, distinct, not negative: where in the sequence the tokens
                are, for rotary positions and for the segments and dilation of the attention. Default: 0 to
                n - 1, of each row's tokens that are not ignored.
            attend: attention of a layer, ``attend(layer, query [b, n, h, d], key, value [b, n, h_kv, d])``,
                around a ring for instance; default: dilated attention among ``inputs``.

        Returns:
            ``[b, n, e]``, the normed last hidden state.

        Raises:
            TypeError, ValueError: naming the argument and its values.
        """
        shape = f"[batch, seq, embed_dim={self.config.embed_dim}]"
        check_dense("inputs", inputs)
        if inputs.is_floating_point():
            if inputs.dim() != 3 or inputs.shape[2] != self.config.embed_dim:
                raise ValueError(f"inputs must be {shape}, got {list(inputs.shape)}")
        elif self.embedding is None:
            raise TypeError(
                f"inputs must be embeddings {shape}, floating point, since vocab_size=None means no token "
                f"table; got {inputs.dtype}"
            )
        else:
            check_tokens(inputs, "inputs")
        return self.hidden(inputs, positions, attend, key_padding_mask)
