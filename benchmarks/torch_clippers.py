"""The PyTorch contenders of per_example.py: plain gradients, clipped ones, norms and squares.

Each is a function (model, x, y) -> gradient, where gradient() returns tensors. Each imports its own
library, so that a missing library removes only its own contenders.
"""

import warnings

C = 1.0  # the clipping norm
warnings.filterwarnings(
    "ignore", "Full backward hook is firing"
)  # from Opacus: X needs no gradient


def take(model, *names):
    """Return these attributes of all parameters, and set them to None for the next call."""
    taken = []
    for name in names:
        taken.append([getattr(p, name) for p in model.parameters()])
        for p in model.parameters():
            setattr(p, name, None)
    return taken


def torch_clip(grads, lengths):
    """Return the mean of the clipped gradients, from every example's gradient and its norm."""
    import torch

    factors = (C / lengths).clamp(max=1) / len(lengths)
    return [torch.einsum("i,i...", factors, g) for g in grads]


def pytorch(model, x, y):
    """Compute the plain gradient."""
    from torch.nn.functional import cross_entropy

    def gradient():
        cross_entropy(model(x), y).backward()
        return take(model, "grad")[0]

    return gradient


def torch_func(model, x, y):
    """Clip vmap(grad) of functional_call, as in PyTorch's tutorial on per-sample gradients."""
    import torch
    from torch.func import functional_call, grad, vmap
    from torch.nn.functional import cross_entropy

    def loss(params, x, y):
        return cross_entropy(functional_call(model, params, (x[None],)), y[None])

    params = {name: p.detach() for name, p in model.named_parameters()}
    each = vmap(grad(loss), (None, 0, 0))

    def gradient():
        grads = each(params, x, y).values()
        lengths = torch.stack([g.flatten(1).norm(dim=1) for g in grads]).norm(dim=0)
        return torch_clip(grads, lengths)

    return gradient


def opacus(model, x, y, *, ghost):
    """Clip as a step of PrivacyEngine.make_private does, without its noise."""
    import torch
    from opacus import GradSampleModule
    from opacus.grad_sample import GradSampleModuleFastGradientClipping
    from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping
    from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping

    sgd = torch.optim.SGD(model.parameters(), lr=1.0)
    clipping = {"noise_multiplier": 0.0, "max_grad_norm": C, "expected_batch_size": len(x)}
    loss = torch.nn.CrossEntropyLoss()
    if ghost:
        model = GradSampleModuleFastGradientClipping(model, max_grad_norm=C)
        optimizer = DPOptimizerFastGradientClipping(sgd, **clipping)
        loss = DPLossFastGradientClipping(model, optimizer, loss)
    else:
        model, optimizer = GradSampleModule(model), DPOptimizer(sgd, **clipping)

    def gradient():
        loss(model(x), y).backward()
        if not ghost:
            optimizer.clip_and_accumulate()
            for p in optimizer.params:
                p.grad = p.summed_grad
        optimizer.scale_grad()  # 1/m
        grads = [p.grad for p in optimizer.params]
        optimizer.zero_grad(set_to_none=True)
        return grads

    return gradient


def backpack_gradients(model, x, y):
    """Clip with BatchGrad and BatchL2Grad in one pass, as in BackPACK's DP-SGD example."""
    from backpack import backpack, extend
    from backpack.extensions import BatchGrad, BatchL2Grad
    from torch.nn.functional import cross_entropy

    extend(model)

    def gradient():
        with backpack(BatchGrad(), BatchL2Grad()):
            cross_entropy(model(x), y, reduction="sum").backward()
        grads, squared, _ = take(model, "grad_batch", "batch_l2", "grad")
        return torch_clip(grads, sum(squared).sqrt())

    return gradient


def backpack_norms(model, x, y, *, clip):
    """Compute norms with BatchL2Grad; to clip, run a second backward pass of weighted losses."""
    from backpack import backpack, extend
    from backpack.extensions import BatchL2Grad
    from torch.nn.functional import cross_entropy

    extend(model)

    def gradient():
        losses = cross_entropy(model(x), y, reduction="none")
        with backpack(BatchL2Grad()):
            losses.sum().backward(retain_graph=clip)
        squared, _ = take(model, "batch_l2", "grad")
        lengths = sum(squared).sqrt()
        if not clip:
            return [lengths]
        ((C / lengths).clamp(max=1) * losses).mean().backward()
        return take(model, "grad")[0]

    return gradient


def backpack_squares(model, x, y):
    """Compute 1/m sum_i g_i^2 with SumGradSquared, from losses divided by sqrt(m)."""
    from backpack import backpack, extend
    from backpack.extensions import SumGradSquared
    from torch.nn.functional import cross_entropy

    extend(model)

    def gradient():
        with backpack(SumGradSquared()):
            (cross_entropy(model(x), y, reduction="sum") / len(x) ** 0.5).backward()
        return take(model, "sum_grad_squared", "grad")[0]

    return gradient
