"""Online instance matching: tell thousands of people apart, each seen a few times, without a classifier to train.

A softmax classifier over identities would get a gradient for each of its weights only when that person is seen, which is almost never.
OIM has no weights. A table holds a prototype v_y for every labelled person, a queue holds the last vectors u_k of people without a label
(who are certainly nobody in the table), and both are filled by the network itself as it trains:

    p_y  = exp(s v_y.x) / (sum_i exp(s v_i.x) + sum_k exp(s u_k.x))       L = -mean log p_y,   |x| = |v| = |u| = 1
    v_y <- normalise(m v_y + (1 - m) x)                                     after the step, for every labelled x

`AdaptiveOIM` is for a network that has been pruned. Its vectors, and with them its prototypes, have degraded, and a loss against degraded
prototypes teaches what was lost to stay lost. The full model's prototypes are still known, so each class is compared with a mixture of
both that trusts its own prototype as far as it still points where the full model's did:

    v~_y = normalise(a_y v_y + (1 - a_y) v_y^full),   a_y = max(0, cos(v_y, v_y^full))

Right after pruning v = v^full; a class whose vectors drift is pulled back, a class that is well is left to itself.

Paper: Xiao et al. 2017, Joint Detection and Identification Feature Learning for Person Search, https://arxiv.org/abs/1604.01850 (section
3.2). AdaptiveOIM is in the style of Wu, Chen, Wang 2023, SAMP, PRCV 2023, https://doi.org/10.1007/978-981-99-8549-4_17, whose formulae
are not public: the weight a_y and the mixture are ours, and no reproduction. Changed in OIM: the table is updated by `update`, not by the
backward pass, so that taking a gradient changes nothing.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from lessen.errors import UsageError


class OIM(nn.Module):
    """The loss, its table and its queue.

    Args:
        people: number of labelled people; their labels are 0 to people - 1.
        dim: length of a vector.
        queue: how many vectors of unlabelled people are remembered.
        scale: s, the inverse temperature.
        momentum: m, how much of a prototype stays when its person is seen.

    >>> oim = OIM(people=2, dim=2, queue=1, scale=1.0)
    >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> oim.update(x, torch.tensor([0, 1]))
    >>> round(float(oim(x, torch.tensor([0, 1]))), 4)  # log(e + 1): the empty queue does not count
    0.3133
    """

    prototypes: Tensor
    queue: Tensor
    seen: Tensor

    def __init__(self, people: int, dim: int, queue: int = 64, scale: float = 10.0, momentum: float = 0.5):
        super().__init__()
        if people < 1 or dim < 1 or queue < 0 or scale <= 0 or not 0 <= momentum < 1:
            got = f"people={people}, dim={dim}, queue={queue}, scale={scale}, momentum={momentum}"
            raise UsageError("OIM", got=got, wanted="positive sizes and scale, a momentum in [0, 1)")
        self.scale, self.momentum = scale, momentum
        self.register_buffer("prototypes", torch.zeros(people, dim))
        self.register_buffer("queue", torch.zeros(queue, dim))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))  # unlabelled vectors so far: the queue's place is its remainder

    def refined(self) -> Tensor:
        """The prototypes that vectors are compared with, "people dim"."""
        return self.prototypes

    def forward(self, identities: Tensor, people: Tensor) -> Tensor:
        """The loss, a scalar; 0 if nobody is labelled.

        Args:
            identities: unit vectors, "person dim".
            people: their labels, int64 "person"; negative ones are unlabelled and only matter to `update`.

        Raises:
            UsageError: a label that the table does not have.
        """
        self._check(people)
        known = people >= 0
        if not bool(known.any()):
            return identities.sum() * 0
        others = self.queue[: int(self.seen.clamp_max(len(self.queue)))]
        logits = self.scale * identities[known] @ torch.cat([self.refined(), others]).to(identities).T
        return cross_entropy(logits, people[known])

    @torch.no_grad()
    def update(self, identities: Tensor, people: Tensor) -> None:
        """Let the table and the queue see vectors, one after the other; arguments as for the loss."""
        self._check(people)
        for x, person in zip(identities.detach().to(self.prototypes), people.tolist(), strict=True):
            if person >= 0:
                mixed = self.momentum * self.prototypes[person] + (1 - self.momentum) * x
                self.prototypes[person] = normalize(mixed, dim=0)
            elif len(self.queue):
                self.queue[int(self.seen) % len(self.queue)] = x
                self.seen += 1

    def _check(self, people: Tensor) -> None:
        if len(people) and int(people.max()) >= len(self.prototypes):
            raise UsageError("OIM", got=f"label {int(people.max())}", wanted=f"labels below {len(self.prototypes)}")


class AdaptiveOIM(OIM):
    """OIM whose prototypes are refined by those of the full model; it starts from the full model's table and queue.

    >>> full = OIM(people=1, dim=2, queue=0, momentum=0.0)
    >>> full.update(torch.tensor([[1.0, 0.0]]), torch.tensor([0]))
    >>> adaptive = AdaptiveOIM(full)
    >>> adaptive.update(torch.tensor([[0.6, 0.8]]), torch.tensor([0]))  # it has drifted: cosine 0.6
    >>> adaptive.refined()  # normalise(0.6 [0.6, 0.8] + 0.4 [1, 0])
    tensor([[0.8455, 0.5340]])
    """

    full: Tensor

    def __init__(self, full: OIM):
        people, dim = full.prototypes.shape
        super().__init__(people, dim, len(full.queue), full.scale, full.momentum)
        self.prototypes.copy_(full.prototypes)
        self.queue.copy_(full.queue)
        self.seen.copy_(full.seen)
        self.register_buffer("full", full.prototypes.clone())

    def refined(self) -> Tensor:
        """The mixtures, "people dim"."""
        trust = (self.prototypes * self.full).sum(1, keepdim=True).clamp_min(0)
        return normalize(trust * self.prototypes + (1 - trust) * self.full, dim=1)
