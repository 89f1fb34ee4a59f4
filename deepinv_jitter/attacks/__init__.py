r"""
Attacks: the perturbation of the measurements, within a budget, that harms a reconstruction most.

Every attack looks for :math:`\arg\max_{\|\delta\| \leq \varepsilon} \ell(H(y + \delta), x)`, sample
by sample, eq. (6) of the paper.
"""

from .apgd import APGDAttack
from .balls import L2Ball, LinfBall
from .base import Attack, WorstCase
from .budgets import Budget
from .converged import ConvergedAttack
from .diagnostics import AttackResult
from .frank_wolfe import FrankWolfeAttack
from .momentum import MomentumAttack
from .pgd import PGDAttack
from .random import RandomAttack
