"""A GPT in the steps and the notation of the course handout.

B: batch size, L: length of a sequence (seq_len), C: feature channels (n_embd), h: heads (n_head), d = C / h: channels
of one head, V: size of the vocabulary, M: the attention mask. The architecture is GPT-2's (Radford et al. 2019):
LayerNorm before each sublayer, learned positions, GELU, and a head that shares its weights with the token embedding.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PRESETS = {
    "mini": {"n_layer": 4, "n_head": 4, "n_embd": 128, "dropout": 0.0},
    "poet": {"n_layer": 4, "n_head": 4, "n_embd": 192, "dropout": 0.1},
    "small": {"n_layer": 6, "n_head": 6, "n_embd": 384, "dropout": 0.2},
    "base": {"n_layer": 12, "n_head": 12, "n_embd": 768, "dropout": 0.2},
}


@dataclass(frozen=True)
class GPTConfig:
    """All that is needed to build a GPT. Raises ValueError for sizes that do not fit together."""

    vocab_size: int
    max_seq_len: int = 64
    n_layer: int = 4
    n_head: int = 4
    n_embd: int = 128
    dropout: float = 0.0
    no_pos: bool = False
    no_res: bool = False

    def __post_init__(self):
        if self.n_embd % self.n_head:
            raise ValueError(f"n_head {self.n_head} does not divide n_embd {self.n_embd}, which the heads share out")


def attention(q: Tensor, k: Tensor, v: Tensor, M: Tensor, dropout: float = 0.0) -> tuple[Tensor, Tensor]:
    """Softmax(q kᵀ / √d + M) v, the handout's steps 3.2 to 3.6 (Vaswani et al. 2017, eq. 1).

    q, k, v: (B, h, L, d); M: (L, L), True where a position must not look.
    Returns the output (B, h, L, d) and the attention weights (B, h, L, L), each row of which sums to 1.
    """
    # exercise: begin
    # Step 3.2: how well each query fits each key. The sum of d products has a variance of d, hence 1 / √d.
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))  # (B, h, L, d) @ (B, h, d, L) -> (B, h, L, L)
    scores = scores.masked_fill(M, -math.inf)  # Step 3.3: + M, which is -∞ where the mask is True
    weights = torch.softmax(scores, dim=-1)  # Step 3.4: over the last dimension, the keys: (B, h, L, L)
    # Step 3.5, 3.6: dropout, then the weighted mean of the values
    out = F.dropout(weights, dropout) @ v  # (B, h, L, L) @ (B, h, L, d) -> (B, h, L, d)
    # exercise: end
    return out, weights


class MultiHeadAttention(nn.Module):
    """Masked multi-head self-attention, the handout's steps 1 to 5."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.n_head, self.dropout = config.n_head, config.dropout
        self.query = nn.Linear(config.n_embd, config.n_embd)  # W^Q
        self.key = nn.Linear(config.n_embd, config.n_embd)  # W^K
        self.value = nn.Linear(config.n_embd, config.n_embd)  # W^V
        self.out = nn.Linear(config.n_embd, config.n_embd)  # W^O

    def forward(self, x: Tensor, M: Tensor, need_weights: bool = False) -> tuple[Tensor, Tensor | None]:
        """x: (B, L, C), M: (L, L) as in attention() -> the output (B, L, C) and the attention weights (B, h, L, L).

        None for these unless `need_weights`: PyTorch then computes the same output in one fused, faster operation.
        """
        B, L, C = x.shape
        h, d = self.n_head, C // self.n_head
        dropout = self.dropout if self.training else 0.0
        # exercise: begin
        q, k, v = self.query(x), self.key(x), self.value(x)  # Step 1: queries, keys and values, (B, L, C) each
        q, k, v = q.view(B, L, h, d), k.view(B, L, h, d), v.view(B, L, h, d)  # Step 2: in heads, (B, L, h, d)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # Step 3.1: heads first, (B, h, L, d)
        # exercise: end
        # Step 3.2 - 3.6. On a CPU, the fused operation's gradient in bfloat16 takes three times as long as these steps.
        if need_weights or (q.dtype == torch.bfloat16 and q.device.type == "cpu"):
            out, weights = attention(q, k, v, M, dropout)
        else:  # its mask has the opposite sense: True where a position may look
            out, weights = F.scaled_dot_product_attention(q, k, v, ~M, dropout), None
        # exercise: begin
        out = out.transpose(1, 2).reshape(B, L, C)  # Step 4: heads joined, (B, h, L, d) -> (B, L, h, d) -> (B, L, C)
        out = F.dropout(self.out(out), dropout)  # Step 5: the output layer, and dropout, (B, L, C)
        # exercise: end
        return out, weights


class FeedForward(nn.Module):
    """Two linear layers with a GELU between, on each position by itself: (B, L, C) -> (B, L, 4C) -> (B, L, C)."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.up = nn.Linear(config.n_embd, 4 * config.n_embd)
        self.down = nn.Linear(4 * config.n_embd, config.n_embd)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.down(F.gelu(self.up(x), approximate="tanh")))


class TransformerLayer(nn.Module):
    """Attention and feed-forward, each behind a LayerNorm and, unless no_res, beside a residual connection."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.no_res = config.no_res
        self.attention_norm = nn.LayerNorm(config.n_embd)
        self.attention = MultiHeadAttention(config)
        self.feed_forward_norm = nn.LayerNorm(config.n_embd)
        self.feed_forward = FeedForward(config)

    def forward(self, x: Tensor, M: Tensor, need_weights: bool = False) -> tuple[Tensor, Tensor | None]:
        """x: (B, L, C) -> (B, L, C), and the attention weights, all as in MultiHeadAttention."""
        attended, weights = self.attention(self.attention_norm(x), M, need_weights)
        x = attended if self.no_res else x + attended
        transformed = self.feed_forward(self.feed_forward_norm(x))
        return transformed if self.no_res else x + transformed, weights


class GPT(nn.Module):
    """A decoder-only language model: from characters to the scores of each next character."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.n_embd)
        if not config.no_pos:
            self.position_embedding = nn.Embedding(config.max_seq_len, config.n_embd)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList([TransformerLayer(config) for _ in range(config.n_layer)])
        self.norm = nn.LayerNorm(config.n_embd)
        self.head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.head.weight = self.token_embedding.weight  # tied (Press & Wolf 2017): half the parameters of a small model
        self.apply(self._init_weights)

    def _init_weights(self, module: nn.Module) -> None:
        """GPT-2's initialisation: N(0, 0.02²), and smaller for the layers that add to the residual stream."""
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
        if isinstance(module, TransformerLayer):  # apply() comes to a module after its children
            for into_residual in (module.attention.out, module.feed_forward.down):
                nn.init.normal_(into_residual.weight, std=0.02 / math.sqrt(2 * self.config.n_layer))

    def features(self, U: Tensor, need_weights: bool = False) -> tuple[Tensor, list[Tensor]]:
        """Steps 1 to 5 and the LayerNorm: (B, L) token ids -> (B, L, C), and the weights as forward() returns them."""
        L = U.size(1)
        # exercise: begin
        P = torch.arange(L, dtype=torch.long, device=U.device)  # Step 1: the positions 0, 1, …, L-1, (L,)
        x = self.token_embedding(U)  # Step 2: the embeddings of the tokens, (B, L, C), and of the positions
        if not self.config.no_pos:
            x = x + self.position_embedding(P)  # Step 3: their sum h_0, (B, L, C) + (L, C), and dropout
        x = self.dropout(x)
        # Step 4: the mask M, True above the diagonal: no position looks at a later one
        M = torch.triu(torch.ones(L, L, dtype=torch.bool, device=U.device), diagonal=1)  # (L, L)
        attn_weights = []
        for layer in self.layers:  # Step 5: the layers, one after another
            x, weights = layer(x, M, need_weights)  # (B, L, C), (B, h, L, L)
            if need_weights:
                attn_weights.append(weights)
        x = self.norm(x)  # Step 6: LayerNorm, (B, L, C)
        # exercise: end
        return x, attn_weights

    def forward(self, U: Tensor, need_weights: bool = False) -> tuple[Tensor, list[Tensor]]:
        """U: (B, L) token ids, L <= max_seq_len -> the logits (B, L, V): at each position, scores of the next token.

        And a list with the attention weights (B, h, L, L) of each layer, empty unless `need_weights`.
        """
        x, attn_weights = self.features(U, need_weights)
        # exercise: begin
        logits = self.head(x)  # Step 6: the linear head, (B, L, C) -> (B, L, V); the softmax is in the loss
        # exercise: end
        return logits, attn_weights

    @property
    def device(self) -> torch.device:
        return self.token_embedding.weight.device

    def num_parameters(self) -> int:
        """Each weight counted once, the shared one of embedding and head too."""
        return sum(p.numel() for p in self.parameters())
