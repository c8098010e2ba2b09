"""What `zoo doctor FILE` says of an image, in a program: whether it fits a model, which models it fits, a cohort."""

from zoo.commands.examination import Examination, examine
from zoo.commands.facts import Fact
from zoo.commands.fitting import Cohort, Fit, check_cohort, find_fits

__all__ = ["Cohort", "Examination", "Fact", "Fit", "check_cohort", "examine", "find_fits"]
