"""Runs a Python script of an operation where cloudify-common is not installed."""

import json
import sys
import traceback


def main():
    script, inputs = sys.argv[1:3]
    with open(inputs, encoding='utf-8') as source:
        kwargs = json.load(source)
    import cloudify
    from cloudify import exceptions, state
    state.ctx_parameters.update(kwargs)
    sys.argv = [script]
    code = 0
    try:
        with open(script, encoding='utf-8', errors='replace') as source:
            text = source.read()
        scope = {'__name__': '__main__', '__file__': script, '__doc__': None, '__package__': None}
        exec(compile(text, script, 'exec'), scope)
    except SystemExit as stopped:
        # In the dispatcher of the original a plain exit is an unknown exception; a clean one is taken as an end.
        if stopped.code not in (None, 0):
            cloudify._raised(stopped, traceback.format_exc())
            code = 1
    except BaseException as error:
        if not isinstance(error, cloudify.StopOperation):
            cloudify._raised(error, traceback.format_exc())
        code = 1
    try:
        cloudify._finish()
    except BaseException as error:
        cloudify._raised(error, traceback.format_exc())
        code = 1
    # Threads of the script do not hold up the operation.
    sys.stdout.flush()
    sys.stderr.flush()
    return code


if __name__ == '__main__':
    sys.exit(main())
