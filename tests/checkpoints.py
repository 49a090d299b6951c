"""Checkpoints as they were published, and what a hostile one holds."""

import torch


def published_checkpoint(network, **changes):
    """A file's content in the layout of the published one, with an optimizer's state as Adam leaves it."""
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-5, weight_decay=1e-4)
    network.requires_grad_(True)
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    network.requires_grad_(False)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    return {
        "model_state_dict": network.state_dict(),
        "optimizer_state_dict": optimizer.state_dict(),
        "scheduler_state_dict": scheduler.state_dict(),
        "epoch": 126,
        "best_val_loss": 0.1,
        "hidden_channels": list(network.hidden),
        "learning_rate": 5e-5,
        "weight_decay": 1e-4,
        "mask_percentage": 0.3,
        "batch_size": 64,
        **changes,
    }


def equal_weights(one, other, atol=0.0):
    states = one.network.state_dict(), other.network.state_dict()
    assert states[0].keys() == states[1].keys()
    return all(torch.allclose(states[0][key], states[1][key], rtol=0, atol=atol) for key in states[0])


class Gadget:
    """What a hostile pickle holds: a call to run while it is read."""

    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return open, (self.target, "w")
