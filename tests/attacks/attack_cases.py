"""What the tests of attacks share."""

from torch import nn


class Reconstructor(nn.Module):
    """A function as a reconstruction network."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, y, physics):
        return self.function(y)
