"""Absent on purpose: a script that calls the REST service itself needs cloudify-common."""


def get_rest_client(*_, **__):
    from cloudify.exceptions import NonRecoverableError
    raise NonRecoverableError('the REST client needs cloudify-common on this worker')
