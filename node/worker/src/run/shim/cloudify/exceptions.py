"""Exceptions the workflow engine tells apart."""


class NonRecoverableError(Exception):
    def __init__(self, *args, **kwargs):
        self.causes = kwargs.pop('causes', None) or []
        super(NonRecoverableError, self).__init__(*args)


class RecoverableError(Exception):
    def __init__(self, message='', retry_after=None, causes=None, **kwargs):
        self.retry_after = retry_after
        self.causes = causes or []
        super(RecoverableError, self).__init__(message)


class OperationRetry(RecoverableError):
    pass


class HttpException(NonRecoverableError):
    def __init__(self, url, code, message, causes=None):
        self.url, self.code, self.message = url, code, message
        super(HttpException, self).__init__('{0} ({1}) : {2}'.format(code, url, message), causes=causes)


class CommandExecutionException(Exception):
    def __init__(self, command, error, output, code):
        self.command, self.error, self.output, self.code = command, error, output, code
        super(CommandExecutionException, self).__init__('{0}: code {1}: {2}'.format(command, code, error))


class TimeoutException(Exception):
    pass


def _known(error):
    if isinstance(error, HttpException):
        return 'HttpException', [error.url, error.code]
    if isinstance(error, NonRecoverableError):
        return 'NonRecoverableError', []
    if isinstance(error, OperationRetry):
        return 'OperationRetry', [error.retry_after]
    if isinstance(error, RecoverableError):
        return 'RecoverableError', [error.retry_after]
    return 'RecoverableError', []
