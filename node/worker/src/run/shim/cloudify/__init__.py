"""A stand-in for cloudify-common, enough for scripts of operations: `from cloudify import ctx`."""

import copy
import json
import os
import urllib.request

from cloudify import exceptions

_URL = os.environ.get('CTX_SOCKET_URL', '')


class StopOperation(BaseException):
    """The operation was told to end: by abort_operation or retry_operation."""


def _post(path, body):
    request = urllib.request.Request(
        _URL + path, data=json.dumps(body).encode('utf-8'), headers={'Content-Type': 'application/json'})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request) as answer:
        answer = json.loads(answer.read())
    payload = answer['payload']
    if answer['type'] == 'error':
        raise _exception(payload)
    if answer['type'] == 'stop_operation':
        raise StopOperation(payload['message'])
    return payload


def _exception(payload):
    kind = getattr(exceptions, payload['type'], None)
    message = payload['message']
    if kind is exceptions.HttpException:
        return exceptions.HttpException('', 0, message)
    if kind is not None:
        return kind(message)
    return RuntimeError('{0}: {1}'.format(payload['type'], message))


def _call(*args):
    return _post('', {'args': list(args)})


def _raised(error, trace):
    known, args = exceptions._known(error)
    _post('/raised', {
        'exception_type': type(error).__name__, 'message': str(error), 'known_exception_type': known,
        'known_exception_type_args': args, 'traceback': trace,
    })


class _Entity(object):
    """A part of ctx whose attributes are asked for one by one."""

    def __init__(self, path):
        self.__dict__['_path'] = path

    def __getattr__(self, name):
        if name.startswith('__'):
            raise AttributeError(name)
        return _call(*(self._path + [name]))


class _Logger(object):
    def _log(self, level, message, *args, **kwargs):
        message = str(message)
        if args:
            message = message % (args[0] if len(args) == 1 and isinstance(args[0], dict) else args)
        _call('logger', level, message)

    def debug(self, message, *args, **kwargs):
        self._log('debug', message, *args)

    def info(self, message, *args, **kwargs):
        self._log('info', message, *args)

    def warning(self, message, *args, **kwargs):
        self._log('warning', message, *args)

    warn = warning

    def error(self, message, *args, **kwargs):
        self._log('error', message, *args)

    def exception(self, message, *args, **kwargs):
        import traceback
        self._log('error', '{0}\n{1}'.format(message % args if args else message, traceback.format_exc()))

    def critical(self, message, *args, **kwargs):
        self._log('critical', message, *args)

    def log(self, level, message, *args, **kwargs):
        names = {10: 'debug', 20: 'info', 30: 'warning', 40: 'error', 50: 'critical'}
        self._log(names.get(level, 'info'), message, *args)


class _Properties(dict):
    """Node properties: read only."""

    def _refuse(self, *args, **kwargs):
        raise exceptions.NonRecoverableError('node properties are read only')

    __setitem__ = __delitem__ = update = pop = popitem = clear = setdefault = _refuse


class _Node(_Entity):
    @property
    def properties(self):
        if '_properties' not in self.__dict__:
            self.__dict__['_properties'] = _Properties(_call(*(self._path + ['properties'])))
        return self.__dict__['_properties']


class _Instance(_Entity):
    _loaded = []

    def __init__(self, path, side, node):
        _Entity.__init__(self, path)
        self.__dict__.update(_side=side, _current=None, _known=None, node=node)

    @property
    def runtime_properties(self):
        if self._current is None:
            self.__dict__['_known'] = _call(*(self._path + ['runtime_properties']))
            self.__dict__['_current'] = copy.deepcopy(self._known)
            _Instance._loaded.append(self)
        return self._current

    def __setattr__(self, name, value):
        if name != 'runtime_properties':
            raise AttributeError(name)
        self.runtime_properties
        self.__dict__['_current'] = dict(value)

    def _push(self):
        if self._current is not None and self._current != self._known:
            _post('/runtime-properties', {'side': self._side, 'properties': self._current})
            self.__dict__['_known'] = copy.deepcopy(self._current)

    def update(self, on_conflict=None):
        self._push()
        _call(*(self._path + ['update']))
        self._forget()

    def refresh(self, force=False):
        self._push()
        _call(*(self._path + ['refresh', {'force': force}]))
        self._forget()

    def _forget(self):
        self.__dict__.update(_current=None, _known=None)


class _Subject(object):
    def __init__(self, side):
        self.node = _Node([side, 'node'])
        self.instance = _Instance([side, 'instance'], side, self.node)


class _Operation(_Entity):
    def retry(self, message=None, retry_after=None):
        _call('operation', 'retry', {'message': message, 'retry_after': retry_after})


class _Capabilities(object):
    def get_all(self):
        return _call('capabilities', 'get_all')

    def __getitem__(self, key):
        found = [properties[key] for properties in self.get_all().values() if key in properties]
        if not found:
            raise KeyError(key)
        if len(found) > 1:
            raise exceptions.NonRecoverableError('{0} is a property of several instances'.format(key))
        return found[0]

    def __contains__(self, key):
        return any(key in properties for properties in self.get_all().values())


class _Context(_Entity):
    def __init__(self):
        _Entity.__init__(self, [])
        self.__dict__.update(
            logger=_Logger(), operation=_Operation(['operation']), deployment=_Entity(['deployment']),
            blueprint=_Entity(['blueprint']), plugin=_Entity(['plugin']), capabilities=_Capabilities())

    def _part(self, name, make):
        if name not in self.__dict__:
            # Asks first, so that a wrong kind of context is refused as everywhere.
            if name in ('source', 'target'):
                _call(name, 'instance', 'id')
            else:
                _call('instance', 'id')
            self.__dict__[name] = make()
        return self.__dict__[name]

    def __getattr__(self, name):
        if name in ('source', 'target'):
            return self._part(name, lambda: _Subject(name))
        if name == 'node':
            return self._part(name, lambda: _Node(['node']))
        if name == 'instance':
            return self._part(name, lambda: _Instance(['instance'], 'own', self.node))
        return _Entity.__getattr__(self, name)

    def _fetch(self, name, path, **named):
        for instance in _Instance._loaded:
            instance._push()
        named = {key: value for key, value in named.items() if value is not None}
        return _call(name, path, named)

    def download_resource(self, resource_path, target_path=None):
        return self._fetch('download_resource', resource_path, target_path=target_path)

    def download_resource_and_render(self, resource_path, target_path=None, template_variables=None):
        return self._fetch('download_resource_and_render', resource_path, target_path=target_path,
                           template_variables=template_variables)

    def get_resource(self, resource_path):
        return self._fetch('get_resource', resource_path).encode('utf-8')

    def get_resource_and_render(self, resource_path, template_variables=None):
        return self._fetch('get_resource_and_render', resource_path,
                           template_variables=template_variables).encode('utf-8')

    def send_event(self, event):
        _call('send_event', {'event': event})

    def returns(self, value):
        _call('returns', {'value': value})

    def abort_operation(self, message=None):
        _call('abort_operation', {'message': message})

    def retry_operation(self, message=None, retry_after=None):
        _call('retry_operation', {'message': message, 'retry_after': retry_after})


ctx = _Context()


def _finish():
    for instance in _Instance._loaded:
        instance._push()
