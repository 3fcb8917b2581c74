"""The one error of the training side that a person can cause and mend."""

from service.errors import FivecropError


class TrainingError(FivecropError):
    """A wrong recipe, data set, weight file or run folder, told in one clear line.

    The command line prints the message and leaves with exit code 2; anything else that is raised
    while training is a fault of ours and keeps its traceback.
    """
