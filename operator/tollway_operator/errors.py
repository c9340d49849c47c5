"""The operator's own errors: the ports translate foreign ones (HTTP statuses, sockets, files) into these, once."""


class OperatorError(Exception):
    """Base; the message is a sentence for a platform engineer."""


class Unreachable(OperatorError):
    """The other side does not answer now; try again later."""


class Gone(OperatorError):
    """The object was deleted meanwhile: nothing to do."""


class Conflict(OperatorError):
    """Somebody changed the object meanwhile: look again."""


class NotOurs(OperatorError):
    """The name is taken by an object that Tollway does not own."""


class Forbidden(OperatorError):
    """The operator's account lacks a right; the message names it."""


class Refused(OperatorError):
    """The other side understood and said no; the message is its reason."""
