"""One gradient of a batch on PyTorch: plain, or from the gradient of every example.

Each makes, of (model, x, y), the function that gives the tensors of one gradient. Each has its own
import, so that a library that is missing is missed by its own contenders alone.
"""

import warnings

C = 1.0  # the largest norm of an example's gradient
warnings.filterwarnings("ignore", "Full backward hook is firing")  # Opacus: X needs no gradient


def take(model, *names):
    """The gradients of a model's parameters, or what else they hold, no longer held there."""
    taken = []
    for name in names:
        taken.append([getattr(p, name) for p in model.parameters()])
        for p in model.parameters():
            setattr(p, name, None)
    return taken


def torch_clip(grads, lengths):
    """The clipped mean of every example's gradient."""
    import torch

    factors = (C / lengths).clamp(max=1) / len(lengths)
    return [torch.einsum("i,i...", factors, g) for g in grads]


def pytorch(model, x, y):
    from torch.nn.functional import cross_entropy

    def gradient():
        cross_entropy(model(x), y).backward()
        return take(model, "grad")[0]

    return gradient


def torch_func(model, x, y):
    """vmap(grad) of functional_call, as PyTorch's tutorial on per-sample gradients has it."""
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
    """What PrivacyEngine.make_private sets up, and a step's clipping without its noise."""
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
    """BatchGrad and BatchL2Grad in one pass, as in BackPACK's example of DP-SGD."""
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
    """BatchL2Grad; to clip, a second backward pass of the losses times their factors."""
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
    """SumGradSquared, of losses over sqrt(m), so that 1/m sum_i g_i^2 comes out."""
    from backpack import backpack, extend
    from backpack.extensions import SumGradSquared
    from torch.nn.functional import cross_entropy

    extend(model)

    def gradient():
        with backpack(SumGradSquared()):
            (cross_entropy(model(x), y, reduction="sum") / len(x) ** 0.5).backward()
        return take(model, "sum_grad_squared", "grad")[0]

    return gradient
