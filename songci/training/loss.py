"""The loss of next-character prediction, computed without keeping the logits of a whole batch."""

import torch
from torch import Tensor, nn

from songci.corpus.windows import IGNORE

CHUNK_ROWS = 1024  # of logits held at a time: (CHUNK_ROWS, V)


class _HeadCrossEntropy(torch.autograd.Function):
    """Head and cross entropy in one, with the gradient computed along with the value.

    With p = softmax(h Wᵀ), the loss of a row with target y is -ln p_y and its gradient with respect to the logits is
    p - onehot(y), which is all that the two products for the gradients of h and W need: the logits of a chunk are
    turned into it in place and forgotten, where separate operations would keep and pass through them several times.
    """

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype):
        count = (targets != IGNORE).sum().clamp(min=1)
        weight_low = weight.to(dtype)
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight)  # summed over chunks in full precision
        total = torch.zeros((), device=hidden.device)
        for start in range(0, len(targets), CHUNK_ROWS):
            rows = slice(start, start + CHUNK_ROWS)
            h, y = hidden[rows].to(dtype), targets[rows, None]
            counts = (y != IGNORE).to(dtype)
            y = y.clamp(min=0)
            probs = torch.softmax(h @ weight_low.T, dim=-1)  # (rows, V)
            total -= (probs.gather(1, y).float().clamp(min=1e-30).log() * counts).sum()
            probs.scatter_add_(1, y, -torch.ones_like(y, dtype=dtype))
            grad_hidden[rows] = (probs @ weight_low) * counts
            if dtype == weight.dtype:
                grad_weight.addmm_(probs.T, h * counts)
            else:
                grad_weight += probs.T @ (h * counts)
        ctx.save_for_backward(grad_hidden / count, grad_weight / count)
        return total / count

    @staticmethod
    def backward(ctx, grad):
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden * grad, grad_weight * grad, None, None


def head_loss(hidden: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Mean cross entropy in nats of the head's logits, hidden @ weight.T, with the targets.

    hidden: (B, L, C), weight: (V, C), targets: (B, L), IGNORE where they do not count; dtype: of the large products.
    Without any target that counts, the loss is 0.
    """
    return _HeadCrossEntropy.apply(hidden.flatten(0, 1), weight, targets.flatten(), dtype)


class TrainingLoss(nn.Module):
    """The loss of a batch of inputs and targets (B, L), as a module, which DistributedDataParallel can wrap.

    compiled: all but the head goes through torch.compile; the model and the names of its weights stay as they are.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype, compiled: bool = False):
        super().__init__()
        self.model, self.dtype = model, dtype
        self.features = torch.compile(model.features) if compiled else model.features

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        with torch.autocast(inputs.device.type, self.dtype, enabled=self.dtype != torch.float32):
            features, _ = self.features(inputs)
        return head_loss(features, self.model.head.weight, targets, self.dtype)
