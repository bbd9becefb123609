"""The optimiser: Muon for the matrices inside the layers, AdamW for embeddings, biases and norms; and its schedule."""

from collections import defaultdict
from collections.abc import Callable

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from model import GPT


def orthogonalize(matrices: Tensor, dtype: torch.dtype = torch.float32, steps: int = 5) -> Tensor:
    """The nearest matrices with singular values about 1, by Newton–Schulz iteration (Jordan et al. 2024).

    matrices: (N, rows, columns), all of them iterated at once, in numbers of type `dtype`. Each step applies the odd
    polynomial 3.4445 x - 4.775 x³ + 2.0315 x⁵ to the singular values, which drives them into 0.7 … 1.2.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrices.size(-2) > matrices.size(-1)
    x = matrices.mT if tall else matrices
    x = (x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)).to(dtype)  # now no singular value is above 1
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)


class Muon(torch.optim.Optimizer):
    """Momentum orthogonalised by Newton–Schulz (Jordan et al. 2024), for matrices only.

    A matrix's update has the size that AdamW's would have, 0.2 √max(rows, columns) (Liu et al. 2025), so that one
    learning rate suits all shapes. Matrices of one shape are orthogonalised together, which torch.optim.Muon does one
    by one and in more time (docs/results.md).
    """

    def __init__(
        self, params, lr: float, momentum: float = 0.95, weight_decay: float = 0.0, dtype: torch.dtype = torch.float32
    ):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.dtype = dtype  # of the iteration

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            by_shape = defaultdict(list)
            for p in group["params"]:
                if not self.state[p]:
                    self.state[p]["momentum"] = torch.zeros_like(p)
                buffer = self.state[p]["momentum"]
                buffer.lerp_(p.grad, 1 - group["momentum"])
                update = p.grad.lerp(buffer, group["momentum"])  # Nesterov's look-ahead
                by_shape[p.shape].append((p, update))
            for shape, members in by_shape.items():
                updates = orthogonalize(torch.stack([update for _, update in members]), self.dtype)
                for (p, _), update in zip(members, updates, strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.add_(update, alpha=-0.2 * max(shape) ** 0.5 * group["lr"])


def make_optimizers(
    model: GPT, lr: float, muon_lr: float, weight_decay: float, kind: str, dtype: torch.dtype = torch.float32
) -> list[torch.optim.Optimizer]:
    """'muon': Muon for the layers' matrices and AdamW for the rest; 'adamw': AdamW for all (Loshchilov & Hutter 2019).

    dtype: that of the run's large products; if it is bfloat16, Muon's are too. Only matrices decay. Each parameter
    group keeps its rate under the key 'base_lr', for the schedule.
    """
    inside = [p for p in model.layers.parameters() if p.dim() == 2] if kind == "muon" else []
    rest = [p for p in model.parameters() if all(p is not q for q in inside)]
    groups = [
        {"params": [p for p in rest if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in rest if p.dim() < 2], "weight_decay": 0.0},
    ]
    fused = model.device.type in ("cpu", "cuda")
    optimizers = [torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.99), fused=fused)]
    if inside:
        low = torch.bfloat16 if dtype == torch.bfloat16 else torch.float32
        optimizers.append(Muon(inside, lr=muon_lr, weight_decay=weight_decay, dtype=low))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["base_lr"] = group["lr"]
    return optimizers


def moving_average(decay: float) -> Callable[[list[Tensor], list[Tensor], Tensor], None]:
    """What torch's AveragedModel does after each step: an exponential moving average of the weights.

    The decay grows to `decay` as (1 + n)/(10 + n) with the number n of averaged steps: with the full decay from the
    start, the random first weights would stay in the average of a short run.
    """

    def update(averages: list[Tensor], weights: list[Tensor], n: Tensor) -> None:
        get_ema_multi_avg_fn(min(decay, (1 + int(n)) / (10 + int(n))))(averages, weights, n)

    return update


def set_rates(optimizers: list[torch.optim.Optimizer], iteration: int, iters: int, warmup_iters: int) -> None:
    """Sets the learning rates of an iteration; see schedule()."""
    rate = schedule(iteration, iters, warmup_iters)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate * group["base_lr"]


MAX_WARMUP = 0.05  # of a run: in a short one, a longer warm-up would leave too few steps at the full rates


def schedule(iteration: int, iters: int, warmup_iters: int) -> float:
    """What the learning rates are multiplied by: linear from 0 to 1 in the warm-up, and linear to 0 at the end.

    The warm-up takes warmup_iters, or MAX_WARMUP of the iterations if that is less.
    """
    warmup_iters = min(warmup_iters, round(MAX_WARMUP * iters))
    if iteration < warmup_iters:
        return (iteration + 1) / warmup_iters
    return (iters - iteration) / max(1, iters - warmup_iters)
