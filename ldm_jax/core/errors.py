"""The errors that a user meets, each with the exit status of the command that raised it."""


class UserError(ValueError):
    """Bad arguments, config, data or checkpoint: what was given, what is accepted, what to do. Exit status 2."""

    status = 2


class NumbersWentBad(RuntimeError):
    """A loss, gradient or sample was not finite. Exit status 5."""

    status = 5


class MachineError(RuntimeError):
    """A host, a device or the network between them failed. Exit status 6."""

    status = 6


class Preempted(RuntimeError):
    """The run was asked to stop (SIGTERM) and has saved its state. Exit status 75."""

    status = 75
