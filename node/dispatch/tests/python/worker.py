"""A worker on cloudify-common's own AMQP client: host, CA file, user and name are arguments, the password is on stdin.

It does what the operation's input `behave` says.
"""
import sys

from cloudify import amqp_client, error_handling, exceptions


class Operations(amqp_client.TaskConsumer):
    routing_key = 'operation'

    def handle_task(self, full_task):
        kwargs = full_task['cloudify_task']['kwargs']
        context = kwargs.pop('__cloudify_context')
        assert context['task_id'] == full_task['id']
        try:
            return {'ok': True, 'result': self.behave(kwargs)}
        except AssertionError:
            raise
        except Exception as e:
            return {'ok': False, 'error': error_handling.serialize_known_exception(e)}

    def behave(self, kwargs):
        behave = kwargs['behave']
        if behave == 'succeed':
            return {'inputs': kwargs}
        if behave == 'recoverable':
            raise exceptions.RecoverableError('busy', retry_after=5, causes=[{'type': 'T', 'message': 'm'}])
        if behave == 'retry':
            raise exceptions.OperationRetry('again', retry_after=0)
        if behave == 'never':
            raise exceptions.NonRecoverableError('never')
        if behave == 'http':
            raise exceptions.HttpException('http://x', 404, 'not found')
        if behave == 'user':
            raise KeyError('k')
        if behave == 'rebuild':
            # What a workflow in Python makes of a reply of ours.
            error = error_handling.deserialize_known_exception(kwargs['error'])
            return [type(error).__name__, str(error), getattr(error, 'retry_after', None), error.causes]
        assert False, behave


host, ca_file, user, name = sys.argv[1:]
params = amqp_client.AMQPParams(
    amqp_host=host, amqp_port=5671, amqp_user=user, amqp_pass=sys.stdin.readline().strip(), amqp_vhost='/',
    ssl_enabled=True, ssl_cert_path=ca_file)
connection = amqp_client.AMQPConnection([Operations(name)], amqp_params=params)
connection.consume_in_thread()
print('ready', flush=True)
# Ends with the test.
sys.stdin.read()
connection.close()
