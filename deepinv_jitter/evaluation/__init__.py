r"""How robust a network is: one call, its report, comparisons, risks and shifts."""

from .comparison import RobustnessComparison
from .metrics import PaperPSNR, PaperSSIM, contrast_recovery, error_outside
from .report import RobustnessReport
from .risks import Risk, average_case_risk, generalization_risk, worst_case_risk
from .robustness import evaluate_robustness
from .selection import choose_sigma
from .shifts import Bias, HorizontalLayer, Lesion, Shift
