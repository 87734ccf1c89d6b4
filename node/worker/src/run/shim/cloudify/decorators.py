"""Marks that mean nothing in a script, but may stand there."""


def operation(function=None, **_):
    return function if function is not None else lambda wrapped: wrapped


workflow = operation
